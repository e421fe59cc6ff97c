// Keeps a page current: fetches it again every few seconds and replaces what carries `data-live`.
// Focus, open details and scroll positions stay; a change of state is announced once.
(() => {
  "use strict";
  const SECONDS = 5;
  const status = document.getElementById("live");
  let lost = false;

  const say = (text, isLost) => {
    if (status && status.textContent !== text) status.textContent = text;
    if (status) status.classList.toggle("is-lost", isLost);
  };

  const keyOf = (element) =>
    element && (element.id || element.getAttribute("href") || element.getAttribute("value") || element.dataset.zoom || element.getAttribute("aria-label") ||
      element.getAttribute("aria-labelledby"));

  const replace = (old, fresh) => {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const key = keyOf(focused);
    const open = new Map([...old.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
    const ticked = new Set([...old.querySelectorAll("input:checked")].map((one) => one.value));
    const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    old.replaceWith(fresh);
    for (const one of fresh.querySelectorAll("details[id]")) if (open.has(one.id)) one.open = open.get(one.id);
    for (const one of fresh.querySelectorAll("input[type=checkbox]")) one.checked = ticked.has(one.value);
    fresh.querySelectorAll(".scroll").forEach((one, at) => { one.scrollLeft = scrolled[at] || 0; });
    if (focused) {
      const again = [...fresh.querySelectorAll("a, button, input, summary, [tabindex]")].find((one) => key && keyOf(one) === key);
      if (again) again.focus({ preventScroll: true });
    }
  };

  const stateText = (root) => {
    const element = root.querySelector("#run-state .state, #incident-state .state");
    return element ? element.textContent.trim() : "";
  };

  const refresh = async () => {
    if (document.hidden) return;
    let fresh;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected && new URL(answer.url).pathname === "/login") { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch {
      if (!lost) say(`Not reachable since ${new Date().toLocaleTimeString()}`, true);
      lost = true;
      return;
    }
    lost = false;
    const before = stateText(document), after = stateText(fresh);
    for (const old of document.querySelectorAll("[data-live]")) {
      const one = old.id && fresh.getElementById(old.id);
      if (one && one.outerHTML !== old.outerHTML) replace(old, document.adoptNode(one));
    }
    say(before !== after ? `Live, now ${after.toLowerCase()}` : "Live", false);
    document.dispatchEvent(new CustomEvent("lossguard:fresh", { detail: fresh }));
  };

  say("Live", false);
  setInterval(refresh, SECONDS * 1000);
  document.addEventListener("visibilitychange", refresh);
})();
