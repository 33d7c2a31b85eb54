"use strict";
// What is typed stays in the address, so that a page that loads itself anew while the batch goes on keeps it.
const box = document.querySelector("input");
const cards = [...document.querySelectorAll("article")].map((card) => [card, card.textContent.toLowerCase()]);
const nothing = document.querySelector(".nothing");
function filter() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [card, text] of cards) {
    card.hidden = !words.every((word) => text.includes(word));
    shown += !card.hidden;
  }
  nothing.hidden = shown > 0;
}
box.addEventListener("input", () => {
  history.replaceState(null, "", box.value ? "#" + encodeURIComponent(box.value) : location.pathname);
  filter();
});
try {
  box.value = decodeURIComponent(location.hash.slice(1));
} catch {
  box.value = "";
}
filter();
