const offered = new Map();
let sent = null;
let turn = 0;

function choose(select, names, first) {
  const wanted = [...(first ? [["", first]] : []), ...names.map((name) => [name, name])];
  const now = [...select.options].map((one) => one.value).join("\n");
  if (now === wanted.map(([value]) => value).join("\n")) return;
  const kept = select.value;
  select.replaceChildren(...wanted.map(([value, text]) => el("option", { value }, text)));
  if (wanted.some(([value]) => value === kept)) select.value = kept;
}

function showChoices(models) {
  offered.clear();
  for (const model of models) offered.set(model.name, model);
  choose($("try-model"), [...offered.keys()]);
  showFields();
}

function showFields() {
  const model = offered.get($("try-model").value);
  if (!model) return;
  choose($("try-version"), model.versions.map((one) => one.version), "any");
  $("image-field").hidden = model.reads === "text";
  $("text-field").hidden = model.reads !== "text";
}

function given(model) {
  if (model.reads === "text") return { body: $("try-text").value, type: "text/plain; charset=utf-8" };
  const file = $("try-image").files[0];
  return file ? { body: file, type: file.type || "application/octet-stream" } : null;
}

async function predict(event) {
  if (event) event.preventDefault();
  const model = offered.get($("try-model").value);
  if (!model) return;
  const input = given(model);
  $("try-error").textContent = "";
  if (!input || !(input.body.size || input.body.length)) {
    $("try-error").textContent = model.reads === "text" ? "Write a text first." : "Choose an image first.";
    return;
  }
  const mine = ++turn, version = $("try-version").value;
  $("try-go").disabled = true;
  try {
    const where = "predict/" + encodeURIComponent(model.name) + "?top=5" + (version ? "&version=" + encodeURIComponent(version) : "");
    const answer = await ask(where, { method: "POST", body: input.body, headers: { "Content-Type": input.type } });
    if (mine !== turn) return;
    sent = { model, input, version: answer.version };
    showAnswer(answer);
    if (model.reads === "image") await explain(answer.predictions[0].label);
  } catch (error) {
    if (mine === turn) { $("result").hidden = true; $("try-error").textContent = error.message; }
  } finally {
    $("try-go").disabled = false;
  }
}

function showAnswer(answer) {
  const image = sent.model.reads === "image";
  $("result").hidden = false;
  $("seen").hidden = true;
  $("classes").replaceChildren(...answer.predictions.map((one) => {
    const inside = [el("span", { class: "l" }, one.label), el("span", {}, percent(one.probability, 1)),
      el("span", { class: "track", "aria-hidden": "true" }, el("i", { width: one.probability * 100 + "%" }))];
    if (!image) return el("li", {}, el("div", { class: "plain" }, ...inside));
    const button = el("button", { type: "button", "aria-pressed": "false", title: "Show where the model sees it" }, ...inside);
    button.addEventListener("click", () => explain(one.label));
    return el("li", { "data-label": one.label }, button);
  }));
  const members = answer.members_total > 1 ? " · " + answer.members + " of " + answer.members_total + " networks" : "";
  $("result-hint").textContent = "version " + answer.version + " · " + ms(answer.ms) + members + (image ? " · choose a label to see where the model finds it" : "");
}

async function explain(label) {
  const { model, input, version } = sent, mine = sent;
  for (const item of $("classes").children)
    item.firstElementChild.setAttribute("aria-pressed", String(item.dataset.label === label));
  try {
    const where = "explain/" + encodeURIComponent(model.name) + "?version=" + encodeURIComponent(version) + "&label=" + encodeURIComponent(label);
    const found = await ask(where, { method: "POST", body: input.body, headers: { "Content-Type": input.type } });
    if (mine !== sent) return;
    draw(found);
    $("seen-hint").textContent = "What speaks for “" + found.label + "”, on the " + found.width + " × " + found.height + " pixels that the model sees.";
  } catch (error) {
    if (mine === sent) $("seen-hint").textContent = $("result-hint").textContent = "No explanation: " + error.message;
  }
}

const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const RAMP = [[59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

function colour(value) {
  const place = Math.min(value * (RAMP.length - 1), RAMP.length - 1.001), low = Math.floor(place), part = place - low;
  return RAMP[low].map((one, channel) => one + (RAMP[low + 1][channel] - one) * part);
}

function draw(found) {
  const { width, height, channels } = found, pixels = bytes(found.pixels), heat = bytes(found.heat);
  const under = new ImageData(width, height), over = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    for (let channel = 0; channel < 3; channel++)
      under.data[place * 4 + channel] = pixels[place * channels + (channels === 1 ? 0 : channel)];
    under.data[place * 4 + 3] = 255;
    over.data.set([...colour(heat[place] / 255), 40 + (heat[place] / 255) * 215], place * 4);
  }
  for (const [id, data] of [["pixels", under], ["heat", over]]) {
    const canvas = $(id);
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(data, 0, 0);
  }
  $("seen").hidden = false;
  fade();
}

function fade() {
  $("heat").style.opacity = $("opacity").value / 100;
  $("opacity-text").textContent = $("opacity").value + " %";
}

function take(files) {
  const file = [...files].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  const box = new DataTransfer();
  box.items.add(file);
  $("try-image").files = box.files;
  predict();
}

$("try").addEventListener("submit", predict);
$("try-model").addEventListener("change", () => { showFields(); $("result").hidden = true; });
$("opacity").addEventListener("input", fade);
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); take(event.dataTransfer.files); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
refresh();
