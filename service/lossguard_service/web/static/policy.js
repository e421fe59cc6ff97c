// Lets plotly.js work under a policy that forbids inline style; loaded before it.
// It writes styles of texts and images as attributes: through the object model the same is allowed. And on loading it
// adds a <style> for maps, which we do not draw: it would be refused, and the console would say so.
(() => {
  "use strict";
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style" && this.style) this.style.cssText = value; else set.call(this, name, value);
  };
  document.head.appendChild = (node) => (node instanceof HTMLStyleElement ? node : Node.prototype.appendChild.call(document.head, node));
})();
