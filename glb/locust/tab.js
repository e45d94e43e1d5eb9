// What the tab Balance shows: verdict, charts and table, all of one moment.
//
// What React keeps is left alone: they stand after the box that holds the tabs, and never in
// it. Which tab is shown is seen by the tabs themselves; the address tells otherwise after "back".
"use strict";
(() => {
  const EVERY_MS = 2000; // as often as locust's page asks for its own tables
  const base = new URL(".", document.currentScript.src);
  const box = document.createElement("div");
  box.id = "glb-balance";
  let timer = null;
  let isAsking = false;
  let shown = "";

  const isDark = () => {
    const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g) ?? [];
    return Number(red) + Number(green) + Number(blue) < 3 * 128;
  };

  const refresh = async () => {
    if (isAsking || document.hidden) return;
    isAsking = true;
    try {
      const query = new URLSearchParams({
        theme: isDark() ? "dark" : "light",
        width: Math.round(box.clientWidth),
      });
      const reply = await fetch(new URL(`tab.html?${query}`, base));
      // A reply from elsewhere is the page to log in.
      if (!reply.ok || reply.redirected) throw new Error(reply.statusText);
      const text = await reply.text();
      // What is pointed at, or marked, stays so unless there is something new.
      if (text !== shown) box.innerHTML = shown = text;
      box.style.opacity = "";
    } catch {
      box.style.opacity = "0.4"; // it is of before
    } finally {
      isAsking = false;
    }
  };

  const look = () => {
    const tab = document.querySelector('[role="tab"][aria-selected="true"]');
    const tabs = tab?.textContent === "Balance" ? tab.closest("main > *") : null;
    if (tabs === null) {
      if (timer !== null) clearInterval(timer);
      timer = null;
      box.remove();
      return;
    }
    if (tabs.nextSibling !== box) {
      box.className = tabs.className; // as wide as it
      tabs.after(box);
    }
    if (timer === null) {
      timer = setInterval(refresh, EVERY_MS);
      refresh();
    }
  };

  new MutationObserver(look).observe(document.getElementById("root") ?? document.body, {
    attributeFilter: ["aria-selected"],
    childList: true,
    subtree: true,
  });
  document.addEventListener("visibilitychange", () => timer !== null && refresh());
  look();
})();
