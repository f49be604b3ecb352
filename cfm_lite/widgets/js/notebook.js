// The widget in a notebook. The engine is a widget of its own, which all explorers of a notebook share: so its
// code stands once there. It is loaded as the notebook's own machinery loads a widget, from a blob.

const REFERENCE = "IPY_MODEL_";
const TOLD = 200; // ms between two messages to the kernel: each makes the notebook work too

/** @typedef {any} Model */

/** What another widget of the notebook holds. @param {Model} model @param {string} name @returns {Promise<Model | null>} */
async function other(model, name) {
  const reference = model.get(name);
  return reference ? model.widget_manager.get_model(reference.slice(REFERENCE.length)) : null;
}

/** The engine, loaded once on a page for each of its versions. @param {string} code */
function load(code) {
  /** @type {any} */
  const page = globalThis;
  page.cfmLiteEngines ??= new Map();
  const version = code.slice(0, code.indexOf("\n"));
  if (!page.cfmLiteEngines.has(version)) {
    const address = URL.createObjectURL(new Blob([code, "\nexport default cfmLite;"], { type: "text/javascript" }));
    page.cfmLiteEngines.set(version, import(address).then((module) => module.default).finally(() => URL.revokeObjectURL(address)));
  }
  return page.cfmLiteEngines.get(version);
}

/** @param {{model: Model, el: HTMLElement}} given */
async function render({ model, el }) {
  const [engine, networks] = await Promise.all([other(model, "_engine"), other(model, "_networks")]);
  const { FACES, mount } = await load(engine.get("content"));
  const face = FACES[model.get("_face")];
  const data = () => ({ ...model.get("_data"), networks: networks ? JSON.parse(networks.get("content")) : undefined });
  const names = Object.keys(face.values(data()));
  const values = () => Object.fromEntries(names.map((name) => [name, model.get(name)]).filter(([, value]) => value !== undefined));
  const place = el.appendChild(document.createElement("div"));
  let [timer, last] = [0, 0];
  let ours = false;
  /** @type {Record<string, any>} */
  let waiting = {};
  const tell = () => {
    timer = 0;
    last = performance.now();
    ours = true;
    for (const [name, value] of Object.entries(waiting)) model.set(name, value);
    ours = false;
    waiting = {};
    model.save_changes();
  };
  const explorer = mount(place, model.get("_face"), {
    data: data(),
    values: values(),
    changed(/** @type {Record<string, any>} */ change) {
      Object.assign(waiting, change);
      timer ||= window.setTimeout(tell, Math.max(0, TOLD - (performance.now() - last)));
    },
  });
  // only what changed: others may wait here to be told
  const heard = names.map((name) => () => {
    if (!ours) explorer?.set({ [name]: model.get(name) });
  });
  const renewed = () => explorer?.setData(data());
  for (const [i, name] of names.entries()) model.on(`change:${name}`, heard[i]);
  model.on("change:_data", renewed);
  return () => {
    if (timer) tell();
    for (const [i, name] of names.entries()) model.off(`change:${name}`, heard[i]);
    model.off("change:_data", renewed);
    explorer?.destroy();
  };
}

export default { render };
