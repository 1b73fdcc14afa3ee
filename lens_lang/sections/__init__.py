"""The parts of the page: one function per result, which says what it shows."""
