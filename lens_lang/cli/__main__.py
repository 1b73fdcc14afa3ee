"""``python -m lens_lang.cli`` is ``lens-lang``."""

from lens_lang.cli.program import main

if __name__ == "__main__":
    main()
