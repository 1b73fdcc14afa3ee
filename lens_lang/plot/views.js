// Draws every view on the page that waits for it, and mends what circuitsvis leaves undone:
// text that does not stand out from its colour, right-to-left text, fields without a name.
window.CircuitsVis = CircuitsVis;
(() => {
  const style = document.createElement("style");
  style.textContent = `
    .lens-lang-view :is(h2, h3, h4, label, p, td, th, figcaption) { color: #111; }
    .lens-lang-view :is(h2, h3, h4) { font-size: 1rem; line-height: 1.3; }
    .lens-lang-view h4 { font-size: 0.75rem; }
    .lens-lang-view select, .lens-lang-view input { font: inherit; color: #111; background: #fff; }
    .lens-lang-view .colored-tokens { line-height: 1.6; overflow-wrap: anywhere; }`;
  document.head.append(style);

  const luminance = (colour) => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const put = (node, name, value) => {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  };

  const mend = (place) => {
    for (const tokens of place.querySelectorAll(".colored-tokens")) {
      const text = tokens.textContent;
      const letters = (text.match(/\p{L}/gu) ?? []).length;
      const leftward = (text.match(/[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g) ?? []).length;
      put(tokens, "dir", 2 * leftward > letters ? "rtl" : "ltr");
      for (const token of tokens.querySelectorAll("span > span")) {
        const colour = token.style.backgroundColor;
        const readable = colour && luminance(colour) > 0.179 ? "black" : "white";
        if (colour && token.style.color !== readable) token.style.color = readable;
      }
    }
    for (const line of place.querySelectorAll("div > strong + br")) {
      const value = line.nextSibling?.nodeValue; // under the pointer, in seventeen digits
      if (/\.\d{6,}/.test(value)) line.nextSibling.nodeValue = String(+(+value).toPrecision(4));
    }
    for (const label of place.querySelectorAll("label")) {
      const field = label.parentElement.querySelector("select, input");
      if (!field) continue;
      put(field, "aria-label", label.textContent);
      const choices = field.options?.length ?? 2; // a choice of one is none
      if (choices < 2 && !label.parentElement.hidden) label.parentElement.hidden = true;
    }
    const heads = [...place.querySelectorAll("h4, h2")].map((head) => head.textContent);
    place.querySelectorAll("canvas").forEach((canvas, number) => {
      put(canvas, "aria-label", `Attention pattern ${heads[number] ?? ""}`.trim());
    });
  };

  const fail = (place, error) => {
    const note = document.createElement("p");
    note.textContent = `This view could not be drawn: ${error}`;
    place.replaceChildren(note);
  };
  // React draws later, and empties the place of a view that fails then.
  window.addEventListener("error", (event) => {
    for (const place of document.querySelectorAll(".lens-lang-view[data-drawn] > .lens-lang-place"))
      if (!place.hasChildNodes()) fail(place, event.error ?? event.message);
  });

  let drawn = 0;
  const draw = () => {
    for (const view of document.querySelectorAll(".lens-lang-view:not([data-drawn])")) {
      const place = view.querySelector(".lens-lang-place");
      const data = view.querySelector("script");
      if (!place || !data) continue; // what a notebook that is not trusted leaves of a view
      view.dataset.drawn = "";
      do place.id = `lens-lang-place-${++drawn}`;
      while (document.querySelectorAll(`#${place.id}`).length > 1);
      const watch = { childList: true, subtree: true, attributes: true, attributeFilter: ["style"] };
      new MutationObserver(() => mend(place)).observe(place, watch);
      try {
        const { element, props } = JSON.parse(data.textContent);
        if (!CircuitsVis[element]) throw new Error(`there is no element ${element}`);
        CircuitsVis.render(place.id, CircuitsVis[element], props);
      } catch (error) {
        fail(place, error);
      }
    }
  };
  window.lensLangViews = { draw };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", draw);
  draw();
})();
