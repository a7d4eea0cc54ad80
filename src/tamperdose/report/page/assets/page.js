"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const data = JSON.parse(by("data").textContent);
  const form = by("filters");
  if (!form) return;

  const PAGE = 20;
  const NAMES = { r: "refused", c: "complied", d: "degenerate", u: "unreadable", "-": "not read" };
  const DIGITS = 12;
  const controls = Object.fromEntries(
    ["arm", "subset", "dose", "verdict", "category", "flip", "search"].map((name) => [name, by("f-" + name)])
  );
  let page = 0;
  let found = [];

  // Everything from outside goes into the page as text, never as markup.
  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function option(select, value, text) {
    const node = make("option", "", text);
    node.value = String(value);
    select.append(node);
  }

  // The answers of an arm by prompt: lists of {dose, sample, verdict, cell, place}, doses ascending.
  const of = new Map();
  function answersOf(arm) {
    if (of.has(arm)) return of.get(arm);
    const byPrompt = new Map();
    for (const cell of data.cells.filter((each) => each.a === arm)) {
      cell.p.forEach((prompt, place) => {
        const read = cell.v.map((verdicts) => verdicts[place]);
        const verdict = read.find((letter) => letter !== "-") || "-";
        if (!byPrompt.has(prompt)) byPrompt.set(prompt, []);
        byPrompt.get(prompt).push({ dose: cell.d, sample: cell.s ? cell.s[place] : 0, verdict, read, cell, place });
      });
    }
    of.set(arm, byPrompt);
    return byPrompt;
  }

  function flip(answer, base) {
    const before = base.get(answer.sample);
    if (answer.dose === 0 || before === undefined || "u-".includes(before) || "u-".includes(answer.verdict)) return "";
    if ((before === "r") === (answer.verdict === "r")) return "";
    return before === "r" ? "lost" : "gained";
  }
  function matches(number, answers, want) {
    const prompt = data.prompts[number];
    if (want.subset !== "" && prompt.h !== Number(want.subset)) return false;
    if (want.category !== "" && prompt.c !== Number(want.category)) return false;
    if (want.search && !(prompt.t + "\n" + prompt.i).toLowerCase().includes(want.search)) return false;
    const looked = want.dose === "" ? answers : answers.filter((each) => each.dose === Number(want.dose));
    if (!looked.length) return false;
    const base = new Map(answers.filter((each) => each.dose === 0).map((each) => [each.sample, each.verdict]));
    const flipped = (each) => {
      const how = flip(each, base);
      return how !== "" && (want.flip === "either" || how === want.flip);
    };
    if (want.flip === "none") {
      if (looked.some((each) => flip(each, base) !== "")) return false;
      return want.verdict === "" || looked.some((each) => each.verdict === want.verdict);
    }
    return looked.some((each) => (want.verdict === "" || each.verdict === want.verdict) && (want.flip === "" || flipped(each)));
  }

  function strip(answers) {
    const list = make("ul", "strip");
    const doses = new Map();
    for (const each of answers) {
      if (!doses.has(each.dose)) doses.set(each.dose, []);
      doses.get(each.dose).push(each.verdict);
    }
    for (const [dose, verdicts] of doses) {
      const same = verdicts.every((letter) => letter === verdicts[0]);
      const item = make("li", "v " + (same ? verdicts[0].replace("-", "") : ""));
      const words = verdicts.map((letter) => NAMES[letter]).join(", ");
      item.title = "dose " + dose + ": " + words;
      item.append(make("small", "", String(dose)));
      const letters = make("span", "", verdicts.join("").toUpperCase());
      letters.setAttribute("aria-hidden", "true");
      item.append(letters, make("span", "vh", words));
      list.append(item);
    }
    return list;
  }

  function answerItem(answer, unit) {
    const { cell, place } = answer;
    const item = make("li");
    const meta = make("div", "meta");
    meta.append(make("b", "", unit + " " + answer.dose + (cell.s ? ", sample " + answer.sample : "")));
    data.judges.forEach((judge, number) => {
      if (answer.read[number] !== "-") meta.append(make("span", "", judge + ": " + NAMES[answer.read[number]]));
    });
    meta.append(make("span", "", cell.l[place].toLocaleString("en") + " characters"));
    meta.append(make("span", "mono", "sha256 " + cell.x.slice(DIGITS * place, DIGITS * (place + 1))));
    item.append(meta);
    if (cell.w[place] >= 0) item.append(make("p", "said", data.texts[cell.w[place]]));
    if (cell.e && data.texts[cell.e[place]]) item.append(make("div", "meta", "evidence: " + data.texts[cell.e[place]]));
    return item;
  }

  function card(number, answers) {
    const prompt = data.prompts[number];
    const item = make("li");
    const meta = make("div", "meta");
    meta.append(make("span", "mono", prompt.i));
    if (data.categories[prompt.c]) meta.append(make("span", "", data.categories[prompt.c]));
    if (!prompt.h) meta.append(make("span", "", "harmless"));
    const details = make("details");
    details.append(make("summary", "", "Answers"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const unit = data.arms[Number(controls.arm.value)].u.replace(/s$/, "");
      const list = make("ul", "answers");
      for (const each of answers) list.append(answerItem(each, unit));
      details.append(list);
    });
    item.append(meta, make("p", "ask", prompt.t), strip(answers), details);
    return item;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    by("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(([number, answers]) => card(number, answers)));
    by("pager").hidden = pages < 2;
    by("page-of").textContent = "Page " + (page + 1) + " of " + pages;
    by("prev").disabled = page === 0;
    by("next").disabled = page === pages - 1;
  }
  function filter() {
    const want = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value]));
    want.search = want.search.trim().toLowerCase();
    const all = [...answersOf(Number(want.arm))];
    found = all.filter(([number, answers]) => matches(number, answers, want)).sort((one, two) => one[0] - two[0]);
    page = 0;
    by("count").textContent = found.length + " of " + all.length + " prompts";
    draw();
  }
  function listDoses() {
    const chosen = controls.dose.value;
    const arm = Number(controls.arm.value);
    const doses = [...new Set(data.cells.filter((each) => each.a === arm).map((each) => each.d))].sort((a, b) => a - b);
    controls.dose.replaceChildren();
    option(controls.dose, "", "any");
    for (const dose of doses) option(controls.dose, dose, String(dose));
    controls.dose.value = doses.map(String).includes(chosen) ? chosen : "";
  }
  function turn(by_) {
    page += by_;
    draw();
    by("prompts-title").scrollIntoView({ block: "start" });
  }

  const arms = [...new Set(data.cells.map((each) => each.a))];
  for (const arm of arms) option(controls.arm, arm, data.arms[arm].n);
  controls.arm.parentElement.hidden = arms.length < 2;
  data.categories.forEach((name, number) => {
    if (name) option(controls.category, number, name);
  });
  controls.category.parentElement.hidden = !data.categories.some((name) => name);
  if (!data.prompts.some((prompt) => prompt.h)) controls.subset.value = "";
  controls.subset.parentElement.hidden = new Set(data.prompts.map((prompt) => prompt.h)).size < 2;
  listDoses();
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target === controls.arm) listDoses();
    filter();
  });
  form.addEventListener("reset", () => {
    setTimeout(() => {
      listDoses();
      filter();
    });
  });
  by("prev").addEventListener("click", () => turn(-1));
  by("next").addEventListener("click", () => turn(1));

  // On paper nothing can be opened.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.fold:not([open])")];
    for (const each of closed) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
  });
  filter();
})();
