// The controls of an explorer: the browser's own, so that keys, touch and screen readers know them.

/**
 * @typedef {object} Control
 * @property {string} name of the value, in the page and in Python
 * @property {"slider" | "choice" | "check" | "interval"} kind
 * @property {string} label
 * @property {string} [hint]
 * @property {number} [low]
 * @property {number} [high]
 * @property {number} [step] of a slider of whole numbers, or of one that rests at certain values
 * @property {number} [digits]
 * @property {[string, any][]} [options] words and value
 */

/** @typedef {{element: HTMLElement, show: (value: any) => void}} Shown */

let made = 0;

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {Record<string, any>} [properties] @param {(Node | string)[]} [children] @returns {HTMLElementTagNameMap[T]} */
export function element(tag, properties = {}, children = []) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in found) /** @type {any} */ (found)[name] = value;
    else found.setAttribute(name, value);
  }
  found.append(...children);
  return found;
}

/** A control that tells of every change. @param {Control} control @param {(value: any) => void} tell @returns {Shown} */
export function build(control, tell) {
  return BUILD[control.kind](control, tell, `cfm-${control.name}-${++made}`);
}

/** @param {Control} control @param {string} id @param {(value: number) => void} tell */
function track({ low = 0, high = 1, step, hint = "" }, id, tell) {
  const input = element("input", { type: "range", id, min: low, max: high, step: step ?? "any", title: hint });
  input.addEventListener("input", () => tell(step ? Number(input.value) : Math.round(1e4 * Number(input.value)) / 1e4));
  return input;
}

/** @type {Record<string, (control: Control, tell: (value: any) => void, id: string) => Shown>} */
const BUILD = {
  slider(control, tell, id) {
    const input = track(control, id, tell);
    const output = element("output", { htmlFor: id });
    const label = element("label", { htmlFor: id, textContent: control.label });
    return {
      element: element("div", { className: "cfm-control cfm-slider" }, [label, input, output]),
      show(value) {
        input.value = value;
        output.textContent = value.toFixed(control.digits ?? 2);
        input.setAttribute("aria-valuetext", output.textContent ?? "");
      },
    };
  },

  choice({ label, options = [], hint = "" }, tell, id) {
    const select = element("select", { id, title: hint }, options.map(([text], i) => element("option", { value: String(i), textContent: text })));
    select.addEventListener("change", () => tell(options[Number(select.value)][1]));
    return {
      element: element("div", { className: "cfm-control" }, [element("label", { htmlFor: id, textContent: label }), select]),
      show(value) {
        select.value = String(options.findIndex(([, one]) => one === value));
      },
    };
  },

  check({ label, hint = "" }, tell, id) {
    const input = element("input", { type: "checkbox", id, title: hint });
    input.addEventListener("change", () => tell(input.checked));
    return {
      element: element("div", { className: "cfm-control" }, [input, element("label", { htmlFor: id, textContent: label })]),
      show(value) {
        input.checked = value;
      },
    };
  },

  interval(control, tell, id) {
    /** @type {[number, number]} */
    let now = [0, 1];
    const move = (/** @type {0 | 1} */ end) => (/** @type {number} */ value) => {
      now = end ? [Math.min(now[0], value), value] : [value, Math.max(now[1], value)];
      tell(now);
    };
    const inputs = [track(control, `${id}-from`, move(0)), track(control, `${id}-to`, move(1))];
    inputs[0].setAttribute("aria-label", `${control.label}: from`);
    inputs[1].setAttribute("aria-label", `${control.label}: to`);
    const output = element("output");
    const name = element("span", { className: "cfm-name", textContent: control.label });
    return {
      element: element("div", { className: "cfm-control cfm-slider cfm-interval", role: "group", "aria-label": control.label }, [name, ...inputs, output]),
      show(value) {
        now = [value[0], value[1]];
        for (const end of [0, 1]) inputs[end].value = value[end];
        output.textContent = `${value[0].toFixed(2)} to ${value[1].toFixed(2)}`;
      },
    };
  },
};
