// What the page does by itself: the address, light and dark, chips that write into the prompt, search among settings.
window.dreamkiln = (() => {
  const key = "dreamkiln-theme";

  // Light and dark: the machine's choice until a person makes one.
  const wish = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const apply = theme => { if (theme) document.body.classList.toggle("dark", theme === "dark"); };
  const theme = () => {
    const next = document.body.classList.contains("dark") ? "light" : "dark";
    try { localStorage.setItem(key, next); } catch { /* a private window */ }
    apply(next);
  };

  // The run that is shown is in the address, so a reload or another device finds it.
  const job = () => new URLSearchParams(location.search).get("job") || "";
  const shown = element => {
    const root = element.querySelector("[data-job]");
    const now = root ? root.dataset.job : "";
    if (!root || now === job()) return;
    const url = new URL(location.href);
    if (now) url.searchParams.set("job", now); else url.searchParams.delete("job");
    history.replaceState(history.state, "", url);
  };

  // On a narrow page the result lies below the form.
  const reveal = () => {
    const right = document.getElementById("dk-right");
    if (right && window.innerWidth < 900) setTimeout(() => right.scrollIntoView({behavior: "smooth"}), 150);
  };

  // Typing for the user: the framework listens to input events.
  const write = text => {
    const field = document.querySelector("#dk-prompt textarea");
    if (!field) return;
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", {bubbles: true}));
    field.focus();
  };
  const insert = text => {
    const field = document.querySelector("#dk-prompt textarea");
    const [from, to] = [field.selectionStart, field.selectionEnd];
    const before = field.value.slice(0, from), after = field.value.slice(to);
    const gap = before && !/\s$/.test(before) ? " " : "";
    write(before + gap + text + (after && !/^\s/.test(after) ? " " : "") + after);
    const caret = (before + gap + text).length;
    field.setSelectionRange(caret, caret);
  };
  document.addEventListener("click", event => {
    const chip = event.target.closest("[data-prompt], [data-insert]");
    if (!chip) return;
    if (chip.dataset.prompt !== undefined) write(chip.dataset.prompt); else insert(chip.dataset.insert);
  });

  // Settings: what was typed and refused goes back; a search opens the groups in which it finds something.
  const sync = element => {
    for (const field of element.querySelectorAll("input[data-knob]")) {
      if (field.type === "checkbox") field.checked = field.hasAttribute("checked");
      else field.value = field.getAttribute("value") || "";
    }
    for (const field of element.querySelectorAll("select[data-knob]")) {
      const chosen = field.querySelector("option[selected]");
      if (chosen) field.value = chosen.value;
    }
  };
  const find = element => {
    const words = (element.querySelector(".dk-find")?.value || "").toLowerCase().split(/\s+/).filter(Boolean);
    for (const group of element.querySelectorAll(".dk-group")) {
      let any = false;
      for (const knob of group.querySelectorAll(".dk-knob")) {
        const hit = words.every(word => knob.dataset.words.includes(word));
        knob.hidden = !hit;
        any = any || hit;
      }
      group.hidden = !any;
      if (words.length) group.open = any;
    }
  };

  // Copying works on plain http too, where the browser keeps its clipboard to itself.
  const copying = element => element.addEventListener("click", async event => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.parentElement.querySelector("pre").textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  // What changes together makes one question, once it rests for a moment: its number, the same for all who ask.
  const asking = new Map();
  let questions = 0;
  const rest = panel => new Promise(done => {
    const together = asking.get(panel) || {answer: []};
    asking.set(panel, together);
    together.answer.push(done);
    clearTimeout(together.timer);
    together.timer = setTimeout(() => {
      asking.delete(panel);
      questions += 1;
      for (const one of together.answer) one(questions);
    }, 25);
  });

  // Settings that were changed since the last answer; an event that had to wait comes without what it was about.
  let changed = [];
  const change = field => { changed.push([field.dataset.knob, field.type === "checkbox" ? field.checked : field.value]); };
  const taken = () => { const all = changed; changed = []; return all; };

  // A viewer whose value is set twice while its code loads stays blank for good (Gradio 6.31): to be noticed, and sent
  // its file again. Loading the code early makes that rare.
  const since = new Map();
  const stuck = selector => {
    let found = false;
    for (const viewer of document.querySelectorAll(`${selector} .model3D`)) {
      if (viewer.querySelector("canvas")) { since.delete(viewer); continue; }
      if (!since.has(viewer)) since.set(viewer, Date.now());
      if (Date.now() - since.get(viewer) > 1500) { found = true; since.delete(viewer); }
    }
    return found;
  };
  const early = names => { for (const name of names) import(new URL(`assets/${name}`, document.baseURI)).catch(() => {}); };

  document.addEventListener("DOMContentLoaded", () => apply(wish()));
  if (document.body) apply(wish());
  return {theme, apply, wish, job, shown, reveal, sync, find, copying, rest, change, taken, stuck, early};
})();
