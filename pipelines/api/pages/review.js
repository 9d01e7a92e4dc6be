// The page: what was read of the class, the five views of it, and decisions with their undo.

import * as api from "./api.js";
import { element, many } from "./dom.js";
import { renderLog } from "./log.js";
import { renderNames } from "./names.js";
import { renderQuestions } from "./questions.js";
import { renderRegister } from "./register.js";
import { renderStudents } from "./students.js";

const VIEWS = {
  questions: renderQuestions,
  names: renderNames,
  students: renderStudents,
  register: renderRegister,
  log: renderLog,
};

const byId = (id) => document.getElementById(id);
const className = decodeURIComponent(location.pathname.split("/").pop());

const app = {
  /** What the server says of the class: see `ReviewAnswer` in /docs. */
  review: null,
  students: new Map(),
  faces: new Map(),
  sessions: new Map(),
  /** Keys of the questions that are answered, until the class is read again. */
  answered: new Set(),
  /** The question that is looked at: it stays when the class is read anew, so that no answer is given to another one. */
  looked: {},
  saving: false,
  decide,
  refreshed: () => reading,
  say,
  render,
  readable,
  faceText,
  photosTogether,
};

// What can be undone with a key: the decisions that were made here, those of one click together.
const made = [];

async function findClass() {
  const names = [];
  for (let offset = 0; ; offset += 200) {
    const page = await api.call("GET", `classes/?limit=200&offset=${offset}`);
    const found = page.results.find((candidate) => candidate.name === className);
    if (found) return found.id;
    names.push(...page.results.map((candidate) => candidate.name));
    if (offset + 200 >= page.total) break;
  }
  const others = names.length ? `There is ${names.join(", ")}.` : "There is no class yet.";
  throw new api.ApiError(404, `There is no class ${className}. ${others}`);
}

let reading = null;
let wanted = 0;

/** Read the class and show it. What is decided while it is read is read again: an older state is never shown. */
function refresh() {
  wanted++;
  reading ??= readUntilNew();
  return reading;
}

async function readUntilNew() {
  try {
    let read;
    do {
      read = wanted;
      app.classId ??= await findClass();
      const review = await api.call("GET", `classes/${app.classId}/review/`);
      if (read === wanted) await show(review);
    } while (read !== wanted);
  } finally {
    reading = null;
  }
}

async function show(review) {
  app.answered.clear();
  app.review = review;
  app.faces = new Map(review.faces.map((face) => [face.crop_id, face]));
  app.sessions = new Map(review.sessions.map((session) => [session.session_id, session]));
  app.students = new Map(review.students.map((student) => [student.student_id, student]));
  await render();
}

// What runs call people whom nobody has named.
const PROVISIONAL = /\bClass_[\w.-]+_Cluster_\d+\b/g;
const RIGHT_TO_LEFT = /\p{Script=Arab}|\p{Script=Hebr}|\p{Script=Syrc}|\p{Script=Thaa}|\p{Script=Nkoo}/u;

/**
 * A sentence to be read: with the labels of this page for people without a name, and names that are written from right to
 * left set apart (Unicode's isolates), so that they do not turn what is around them.
 */
function readable(text) {
  let said = text;
  // The longer name first: another one may begin with it.
  const students = [...app.students.values()].sort((a, b) => b.name.length - a.name.length);
  for (const { name, label, provisional } of students) {
    if (provisional) said = said.replaceAll(name, label);
    else if (RIGHT_TO_LEFT.test(name) && !said.includes(`\u2068${name}\u2069`)) said = said.replaceAll(name, `\u2068${name}\u2069`);
  }
  said = said.replace(PROVISIONAL, "an unnamed person");
  return said.charAt(0).toUpperCase() + said.slice(1);
}

/** What a face is, for who cannot see it. */
function faceText(cropId) {
  const face = app.faces.get(cropId);
  const session = app.sessions.get(face.session_id)?.name ?? "a portrait";
  return `Face ${cropId}, from ${session}${face.confirmed ? ", confirmed" : ""}`;
}

/** How many photos show both: two faces in one photo are hardly one person. */
function photosTogether(student, other) {
  const photosOf = ({ crop_ids: ids }) => new Set(ids.map((id) => app.faces.get(id).image_id));
  const photos = photosOf(other);
  return [...photosOf(student)].filter((id) => photos.has(id)).length;
}

// The address names the view, but for the skip link's.
let view = "questions";

function readAddress() {
  const wanted = location.hash.slice(1);
  if (wanted in VIEWS) view = wanted;
  return wanted in VIEWS;
}

let rendering = 0;

async function render() {
  const { review } = app;
  const turn = ++rendering;
  const open = review.questions.filter((question) => !app.answered.has(question.key));
  byId("class-name").textContent = review.class_name;
  document.title = `Review of ${review.class_name}`;
  byId("summary").textContent = summary(review, open);
  const unnamed = review.students.filter((student) => student.kind === "unknown").length;
  const counts = { questions: open.length, names: unnamed };
  for (const link of document.querySelectorAll("nav a")) {
    const name = link.hash.slice(1);
    const title = name[0].toUpperCase() + name.slice(1);
    link.textContent = counts[name] ? `${title} (${counts[name]})` : title;
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const main = byId("main");
  const typed = [...main.querySelectorAll("input[type=text][data-focus]")].map((input) => [input.dataset.focus, input.value]);
  const held = main.contains(document.activeElement) && document.activeElement !== main;
  const key = held && document.activeElement.dataset.focus;
  const { selectionStart, selectionEnd, ariaExpanded } = document.activeElement;
  const listed = ariaExpanded === "true";
  const shown = await VIEWS[view](app);
  // Another view, or a newer state, was asked for while this one was fetched.
  if (turn !== rendering) return;
  main.replaceChildren(...shown);
  // What somebody has begun to write stays.
  for (const [name, text] of typed) {
    const input = text && main.querySelector(`input[data-focus="${CSS.escape(name)}"]`);
    if (input) input.value = text;
  }
  if (!held) return;
  const again = key && main.querySelector(`[data-focus="${CSS.escape(key)}"]`);
  // Who reads on meanwhile stays where they are.
  if (again) again.focus({ preventScroll: true });
  else (main.querySelector("[data-next]") || main.querySelector("h2")).focus();
  if (again?.type === "text") again.setSelectionRange(selectionStart, selectionEnd);
  if (listed) again?.dispatchEvent(new Event("input"));
}

function summary(review, open) {
  const left = open.filter((question) => question.cells.length).length;
  const unnamed = review.students.filter((student) => student.kind === "unknown").length;
  const unsure = review.cells.filter((cell) => cell.status === "unsure").length;
  const parts = [
    left && `${many(left, "question")} left`,
    unnamed && `${many(unnamed, "person", "people")} without a name`,
    unsure && `${many(unsure, "cell")} unsure`,
  ].filter(Boolean);
  if (parts.length) return `${parts.join(", ")}.`;
  return review.cells.length
    ? "Finished: no question is left, everybody has a name, no cell is unsure."
    : "No session has been processed yet.";
}

/**
 * Have the server keep a decision of one click: steps are called one after the other with the answer of the one before,
 * and undone together. saved: forgets what was filled in for it. question: the key of the one that it answers; the next one
 * is shown at once, while the class is read. Returns whether all is kept; what failed can be tried again from there, and
 * nothing is lost.
 */
async function decide(title, steps, { saved = () => {}, question = null, previous = null, why = byId("why").value } = {}) {
  if (app.saving) return false;
  app.saving = true;
  byId("main").setAttribute("aria-busy", "true");
  showProblem();
  api.because(why);
  const ids = [];
  let failure = null;
  let next = 0;
  try {
    for (; next < steps.length; next++) {
      if (steps.length > 3) say(`Saving ${next + 1} of ${steps.length} …`);
      previous = await steps[next](previous);
      ids.push(previous.decision_id);
    }
  } catch (error) {
    failure = error;
  }
  if (failure) {
    const rest = steps.slice(next);
    const missing = ids.length ? `${many(rest.length, "step")} of “${title}” not saved` : `Not saved: ${title}`;
    showProblem(failure, missing, () => decide(title, rest, { saved, question, previous, why }));
  } else {
    saved();
    closeWhy(why);
  }
  if (ids.length) {
    made.push({ title, ids });
    const read = refreshOrSay();
    if (question && !failure) {
      app.answered.add(question);
      await renderOrSay();
    } else await read;
    say(failure ? `Only a part is saved: ${title}.` : `Saved: ${title}.`);
  }
  app.saving = false;
  byId("main").removeAttribute("aria-busy");
  return !failure;
}

async function undoLast() {
  const last = made.at(-1);
  if (!last) return say("Nothing was decided here since the page was opened; the log has what was before.");
  if (app.saving) return undefined;
  app.saving = true;
  showProblem();
  const why = byId("why").value;
  api.because(why);
  let failure = null;
  try {
    while (last.ids.length) {
      await undoOnce(last.ids.at(-1));
      last.ids.pop();
    }
    made.pop();
  } catch (error) {
    failure = error;
  }
  if (failure) showProblem(failure, `Not undone: ${last.title}`, undoLast);
  else closeWhy(why);
  // The question that is open again is asked, where it comes first.
  app.looked = {};
  await refreshOrSay();
  app.saving = false;
  return say(failure ? `Not undone: ${last.title}.` : `Undone: ${last.title}.`);
}

/** What the log, or another page, has undone meanwhile is undone too: else it would stand before all that is older. */
async function undoOnce(decisionId) {
  try {
    await api.undo(decisionId);
  } catch (error) {
    if (error.status !== 409 || !error.message.includes("is undone already")) throw error;
  }
}

async function refreshOrSay() {
  try {
    await refresh();
  } catch (error) {
    showProblem(error, "What is shown here may be old", refreshOrSay);
  }
}

async function renderOrSay() {
  try {
    await render();
    return true;
  } catch (error) {
    showProblem(error, "This part cannot be shown", renderOrSay);
    return false;
  }
}

/** Say it to who sees it and to who hears it; beside it stands the button that undoes the last decision. */
function say(text) {
  byId("said").textContent = readable(text);
  const button = byId("undo");
  const last = made.at(-1);
  // A hidden button loses the focus to nowhere.
  if (!last && document.activeElement === button) byId("main").focus();
  button.hidden = !last;
  if (last) button.setAttribute("aria-label", `Undo: ${last.title}`);
}

/** What went wrong, in words, with the way on; without an error nothing went wrong. */
function showProblem(error = null, what = "", retry = null) {
  const panel = byId("problem");
  // Behind an open dialog nobody could see or press it.
  (document.querySelector("dialog[open]") ?? document.body).append(panel);
  panel.replaceChildren();
  if (!error) return;
  if (!(error instanceof api.ApiError)) console.error(error);
  panel.append(
    element("p", {}, element("strong", {}, readable(`${what}. `)), readable(error.message)),
    element("button", { type: "button", click: () => { showProblem(); retry(); } }, "Try again"),
    element("button", { type: "button", click: () => { showProblem(); byId("main").focus(); } }, "Close"),
  );
}

// Where the focus goes back to from the reason.
let before = null;

function openWhy() {
  before = document.activeElement;
  byId("why-field").hidden = false;
  byId("why-open").hidden = true;
  byId("why").focus();
}

/** There is no reason any more, and its field is away; unless it holds another one than was given: that is for what comes. */
function closeWhy(given = byId("why").value) {
  if (byId("why").value !== given) return;
  byId("why").value = "";
  leaveWhy();
  byId("why-field").hidden = true;
  byId("why-open").hidden = false;
}

function leaveWhy() {
  if (document.activeElement !== byId("why")) return;
  const back = before?.isConnected && before.checkVisibility() && before !== document.body ? before : byId("main");
  back.focus();
}

byId("why-open").addEventListener("click", openWhy);
byId("why").addEventListener("keydown", (event) => {
  if (event.key === "Escape" || (event.key === "Enter" && !event.target.value.trim())) closeWhy();
  else if (event.key === "Enter") leaveWhy();
  else return;
  event.preventDefault();
});
new ResizeObserver(([{ target }]) =>
  document.documentElement.style.setProperty("--footer", `${target.offsetHeight}px`),
).observe(document.querySelector("footer"));

// Who speaks to the browser, or types letters for another reason, can switch the keys off (WCAG 2.1.4).
const KEYS_OFF = "attendansee-keys-off";
byId("keys-on").checked = localStorage.getItem(KEYS_OFF) === null;
byId("keys-on").addEventListener("change", ({ target }) => {
  if (target.checked) localStorage.removeItem(KEYS_OFF);
  else localStorage.setItem(KEYS_OFF, "");
});

document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input:not([type=checkbox], [type=radio]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey || writing || document.querySelector("dialog[open]")) return;
  if (!byId("keys-on").checked && event.key !== "?") return;
  const answer = /^[1-9]$/.test(event.key) && document.querySelector(`[data-answer="${event.key}"]`);
  const pressed = answer || { "?": byId("keys"), u: byId("undo"), w: byId("why-open"), s: document.querySelector("[data-skip]") }[event.key];
  if (!pressed) return;
  event.preventDefault();
  if (pressed === byId("why-open")) openWhy();
  else if (pressed.tagName === "INPUT") pressed.focus();
  else if (pressed === byId("undo")) undoLast();
  else pressed.click();
});

byId("undo").addEventListener("click", undoLast);
byId("keys").addEventListener("click", () => byId("keys-dialog").showModal());
window.addEventListener("hashchange", async () => {
  if (!readAddress() || !app.review) return;
  if (await renderOrSay()) byId("main").querySelector("h2")?.focus();
});

readAddress();
await refreshOrSay();
