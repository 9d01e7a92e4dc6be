// Making elements: always nodes and text, never HTML from strings, so that a name is only ever a name.

import { picture } from "./api.js";

/** An element; attributes that are functions listen to the event of that name, null and false ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A name, which may be written from right to left, in a sentence that is not. */
export const bdi = (name) => element("bdi", {}, name);

export const many = (count, thing, things = `${thing}s`) => `${count} ${count === 1 ? thing : things}`;

const inSight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      inSight.unobserve(target);
      picture(Number(target.dataset.crop)).then(
        (url) => { target.src = url; },
        () => { target.alt = `${target.alt} (there is no picture)`; target.classList.add("missing"); },
      );
    }
  },
  { rootMargin: "300px" },
);

/** The picture of a face, loaded when it comes into sight. */
export function faceImage(cropId, alt, kind = "small") {
  const image = element("img", { class: `face ${kind}`, alt, "data-crop": cropId });
  inSight.observe(image);
  return image;
}

/** A face that can be pressed; kind: "keep" (pressed: it is them) or "choose" (pressed: to do something with it). */
export function faceToggle(cropId, alt, { kind, pressed, badge, change, key }) {
  const button = element(
    "button",
    {
      type: "button",
      class: `toggle ${kind}`,
      "aria-pressed": String(pressed),
      "aria-label": alt,
      "data-focus": key,
      click: () => {
        const now = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(now));
        change(now);
      },
    },
    faceImage(cropId, ""),
    badge,
  );
  return button;
}

/** Whether two faces are like enough to be asked about. */
export const isLike = (similarity, threshold) => similarity !== null && similarity >= threshold / 2;

/** How alike two faces are, in words and in the number that the words are made of. */
export function alike(similarity, threshold) {
  if (similarity === null || similarity === undefined) return "nothing to compare with";
  const words =
    similarity >= (1 + threshold) / 2 ? "very alike"
    : similarity >= threshold ? "alike"
    : isLike(similarity, threshold) ? "a little alike"
    : "hardly alike";
  return `${words} (${similarity.toFixed(2)})`;
}

/** A text for comparing: without case, accents and spaces around it. */
export const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").trim().replace(/\s+/g, " ").toLowerCase();

/** Whose name a text is: as it is written, else, where that is only one student, without regard to case and accents. */
export function namedBy(text, students) {
  const exact = students.find((student) => student.label === text.trim().normalize("NFC"));
  if (exact) return exact;
  const like = students.filter((student) => plain(student.label) === plain(text));
  return like.length === 1 && plain(text) ? like[0] : null;
}

let comboboxes = 0;
const SHOWN_OPTIONS = 8;

/**
 * A field for a name with the students below it whose names hold what is typed (ARIA's editable combobox); any other
 * text can be given too. students: [{label, note}]. changed(text): after each letter. chosen(): Enter on a closed list.
 */
export function combobox({ label, students, value = "", changed = () => {}, chosen = () => {}, key, answer }) {
  const id = `combobox-${++comboboxes}`;
  const list = element("ul", { id: `${id}-list`, role: "listbox", hidden: true });
  let active = -1;
  const input = element("input", {
    id,
    type: "text",
    dir: "auto",
    role: "combobox",
    maxlength: 200,
    autocomplete: "off",
    spellcheck: "false",
    "aria-autocomplete": "list",
    "aria-expanded": "false",
    "aria-controls": `${id}-list`,
    "data-focus": key,
    "data-answer": answer,
    input: () => { changed(input.value); open(); },
    keydown: (event) => pressed(event),
    blur: () => close(),
  });
  input.value = value;
  list.setAttribute("aria-label", "Students");

  function open() {
    const wanted = plain(input.value);
    const found = students.filter((student) => plain(student.label).includes(wanted)).slice(0, SHOWN_OPTIONS);
    list.replaceChildren(
      ...found.map((student, index) =>
        element(
          "li",
          {
            id: `${id}-${index}`,
            role: "option",
            "aria-selected": "false",
            // Before the field loses the focus, which closes the list.
            pointerdown: (event) => { event.preventDefault(); pick(student); },
          },
          bdi(student.label),
          student.note && element("small", {}, ` ${student.note}`),
        ),
      ),
    );
    list.students = found;
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(!list.hidden));
    highlight(-1);
  }

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    highlight(-1);
  }

  function highlight(index) {
    active = index;
    [...list.children].forEach((option, place) => option.setAttribute("aria-selected", String(place === index)));
    if (index < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", `${id}-${index}`);
      list.children[index].scrollIntoView({ block: "nearest" });
    }
  }

  function pick(student) {
    input.value = student.label;
    close();
    changed(input.value);
  }

  function pressed(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) open();
      const count = list.children.length;
      if (count) highlight((active + (event.key === "ArrowDown" ? 1 : active < 0 ? 0 : -1) + count) % count);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (active >= 0) pick(list.students[active]);
      else { close(); chosen(); }
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    }
  }

  const root = element("div", { class: "combobox" }, element("label", { for: id }, label), input, list);
  return { root, input };
}
