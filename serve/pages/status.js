const STAGES = { receive: "Receive", decode: "Decode", queue: "Queue", compute: "Compute", total: "Total" };
const DRIFT = {
  none: ["good", "no drift"], moderate: ["warn", "moderate drift"], major: ["bad", "major drift"],
  collecting: ["", "collecting"], "no reference": ["", "no reference"], unknown: ["", "–"],
};
const ROLES = { answers: null, shadow: "shadow", canary: "canary" };
const cards = new Map();

const chip = (text, kind = "") => el("span", { class: "chip " + kind }, text);
const driftChip = (drift) => chip(DRIFT[drift.state][1], DRIFT[drift.state][0]);
const total = (one) => (one.latency_ms.total ? one.latency_ms.total : {});

function tile(name, value, unit = "") {
  return el("div", { class: "tile" }, el("div", { class: "k" }, name),
    el("div", { class: "v" }, value, unit ? el("small", {}, " " + unit) : null));
}

function showTiles(status) {
  const versions = status.models.flatMap((model) => model.versions);
  const sum = (pick) => versions.reduce((found, one) => found + pick(one), 0);
  const counted = [...status.models.map((one) => one.http), status.server.refused];
  const with_ = (first) => counted.reduce((found, one) => found + (one[first] || 0), 0);
  const slowest = Math.max(0, ...versions.filter((one) => one.role !== "shadow").map((one) => total(one).p95 || 0));
  $("tiles").replaceChildren(
    tile("Requests", short(sum((one) => (one.role === "shadow" ? 0 : one.rate))), "/ s"),
    tile("Slowest p95", slowest ? ms(slowest).split(" ")[0] : "–", slowest ? ms(slowest).split(" ")[1] : ""),
    tile("Waiting", short(sum((one) => one.waiting)), "samples"),
    tile("Refused", short(with_("4xx")), "4xx"),
    tile("Failed", short(with_("5xx")), "5xx"),
    tile("Up", span(status.server.seconds)));
}

function chart(bars) {
  const top = Math.max(1e-9, ...bars.map((one) => one.answered + one.failed));
  const made = svg("svg", { class: "chart", viewBox: "0 0 240 60", preserveAspectRatio: "none", role: "img",
    "aria-label": "Requests a second over five minutes, at most " + short(top < 1e-6 ? 0 : top) });
  bars.forEach((one, place) => {
    const ok = (one.answered / top) * 56, no = (one.failed / top) * 56;
    if (ok) made.append(svg("rect", { class: "ok", x: place * 4, y: 59 - ok, width: 3, height: ok }));
    if (no) made.append(svg("rect", { class: "no", x: place * 4, y: 59 - ok - no, width: 3, height: no }));
  });
  made.append(svg("line", { class: "base", x1: 0, x2: 240, y1: 59.5, y2: 59.5 }));
  return el("div", {}, el("h3", {}, "Requests / s"), made,
    el("div", { class: "axis" }, el("span", {}, "5 min ago"), el("span", {}, "peak " + short(top < 1e-6 ? 0 : top)), el("span", {}, "now")));
}

function stages(one) {
  const widest = Math.max(1e-9, ...Object.values(one.latency_ms).map((stage) => stage.p99));
  const rows = Object.entries(STAGES).filter(([name]) => one.latency_ms[name]).map(([name, title]) => {
    const { p50, p95, p99 } = one.latency_ms[name];
    const bar = (value, kind) => el("i", { class: kind, width: Math.max(0.7, (value / widest) * 100) + "%" });
    return el("div", { class: "stage" }, el("b", {}, title),
      el("div", { class: "track", "aria-hidden": "true" }, bar(p99, "tail"), bar(p95, "tail"), bar(p50, "")),
      el("div", { class: "nums" }, el("span", {}, "p50 " + ms(p50)), el("span", {}, "p95 " + ms(p95)), el("span", {}, "p99 " + ms(p99))));
  });
  const batch = one.batch ? "batches of " + short(one.batch.mean) + " on average, " + one.batch.max + " at most" : null;
  return el("div", {}, el("h3", {}, "Latency by stage"),
    rows.length ? el("div", { class: "stages" }, ...rows) : el("p", { class: "sub" }, "No answers in the last five minutes."),
    batch ? el("p", { class: "sub" }, batch) : null);
}

function shift(one) {
  const kind = DRIFT[one.state][0], count = one.expected.length, wide = 100 / count;
  const top = Math.max(...one.expected, ...one.observed, 1e-9);
  const made = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img",
    "aria-label": one.name + ": shares in " + count + " bins, training and now" });
  one.expected.forEach((value, place) => {
    const was = (value / top) * 39, now = (one.observed[place] / top) * 39;
    made.append(svg("rect", { class: "was", x: place * wide + 0.4, y: 40 - was, width: wide - 0.8, height: was }));
    made.append(svg("rect", { class: "now", x: place * wide + wide * 0.3, y: 40 - now, width: wide * 0.4, height: now }));
  });
  const change = one.mean === null ? "shares of the classes" : "mean " + short(one.reference_mean) + " → " + short(one.mean);
  return el("div", { class: "shift " + (kind === "good" ? "" : kind) },
    el("div", { class: "t" }, el("span", {}, one.name), one.state === "none" ? null : chip(one.state, kind)),
    made, el("div", { class: "sub" }, change),
    el("div", { class: "sub" }, "PSI " + number(one.psi, 2) + " · p " + (one.p < 0.001 ? "< 0.001" : number(one.p, 3))));
}

function drift(found) {
  const title = el("h3", {}, "Drift");
  if (found.state === "no reference" || found.state === "unknown")
    return el("div", { class: "full" }, title, el("p", { class: "sub" },
      found.state === "unknown" ? "Not known yet." : "This model was saved without statistics of its data; train it again to compare requests with them."));
  const from = "compared with " + number(found.reference.samples) + " samples of the " + found.reference.split + " split";
  const next = "the next window has " + found.collected + " of " + found.window + " samples";
  const text = found.at === null ? next + "; " + from
    : found.samples + " samples " + from + ", " + span(Date.now() / 1000 - found.at) + " ago; " + next;
  return el("div", { class: "full" }, title,
    found.shifts.length ? el("div", { class: "drift" }, ...found.shifts.map(shift)) : null,
    el("p", { class: "sub" }, text + "."));
}

function line(bins, kind) {
  const points = bins.filter((one) => one.count).map((one) => [4 + one.confidence * 92, 96 - one.accuracy * 92]);
  return [svg("polyline", { class: kind, points: points.map((one) => one.join(",")).join(" ") }),
    ...points.map(([x, y]) => svg("circle", { class: kind, cx: x, cy: y, r: 2 }))];
}

function calibration(found) {
  const held = found.held_out, live = found.live;
  const pair = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
  const plot = svg("svg", { viewBox: "0 0 100 100", role: "img", "aria-label": "Accuracy by confidence" },
    svg("rect", { class: "frame", x: 4, y: 4, width: 92, height: 92 }),
    svg("line", { class: "ideal", x1: 4, y1: 96, x2: 96, y2: 4 }),
    ...(held ? line(held.bins, "held") : []), ...line(live.bins, "now"));
  return el("div", {}, el("h3", {}, "Confidence and calibration"), el("div", { class: "cal" },
    held || live.answers ? plot : null,
    el("dl", {}, ...pair("confidence now", percent(found.confidence, 1)),
      ...(held ? [...pair("held-out confidence", percent(held.confidence, 1)), ...pair("held-out accuracy", percent(held.accuracy, 1)), ...pair("held-out ECE", percent(held.error, 1))] : []),
      ...pair("labels since", short(live.answers)),
      ...(live.answers ? [...pair("accuracy now", percent(live.accuracy, 1)), ...pair("ECE now", percent(live.error, 1))] : []))));
}

function versionRow(one, place) {
  const cell = (name, ...what) => el("td", { "data-name": name }, ...what);
  const times = total(one);
  return el("tr", {}, el("th", { scope: "row" }, el("span", { class: "name" },
    el("span", { class: "swatch f" + (place % 5), "aria-hidden": "true" }), one.version, ROLES[one.role] ? chip(ROLES[one.role]) : null)),
    cell("share", percent(one.share, one.share > 0 && one.share < 0.1 ? 1 : 0)),
    cell("requests / s", short(one.rate)), cell("answered", short(one.answered)), cell("failed", short(one.failed)),
    cell("p50", ms(times.p50)), cell("p95", ms(times.p95)), cell("p99", ms(times.p99)),
    cell("drift", driftChip(one.drift)));
}

function newCard(name) {
  const id = "model-" + cards.size;
  const parts = { title: el("h2", { id }, name), about: el("span", { class: "about" }), shares: el("div"), table: el("div"),
    versions: el("div", { class: "versions" }), details: new Map() };
  parts.root = el("section", { class: "panel", "aria-labelledby": id },
    el("div", { class: "head" }, parts.title, parts.about), parts.shares, parts.table, parts.versions);
  return parts;
}

function showModel(model) {
  if (!cards.has(model.name)) cards.set(model.name, newCard(model.name));
  const card = cards.get(model.name);
  const takes = model.reads === "text" ? "texts of " + model.shape[0] + " tokens" : "images " + model.shape.slice(1).join(" × ") + (model.shape[0] === 1 ? ", grey" : model.shape[0] === 3 ? ", RGB" : ", " + model.shape[0] + " channels");
  const errors = (model.http["4xx"] || 0) + (model.http["5xx"] || 0);
  card.about.textContent = takes + " · " + number(model.classes) + " classes · traffic: " + model.rule + (errors ? " · " + short(model.http["4xx"] || 0) + " refused, " + short(model.http["5xx"] || 0) + " failed" : "");
  const said = model.versions.map((one) => "version " + one.version + " " + percent(one.share)).join(", ");
  card.shares.replaceChildren(el("div", { class: "shares", role: "img", "aria-label": "Traffic: " + said },
    ...model.versions.map((one, place) => el("span", { class: "f" + (place % 5), grow: String(one.share) }))));
  const heads = ["Version", "Share", "Requests / s", "Answered", "Failed", "p50", "p95", "p99", "Drift"];
  card.table.className = "scroll";
  card.table.replaceChildren(el("table", { class: "cards" },
    el("thead", {}, el("tr", {}, ...heads.map((one) => el("th", { scope: "col" }, one)))),
    el("tbody", {}, ...model.versions.map(versionRow))));
  showDetails(card, model.versions);
}

function showDetails(card, versions) {
  const there = new Set(versions.map((one) => one.version));
  for (const [version, one] of card.details) if (!there.has(version)) { one.root.remove(); card.details.delete(version); }
  for (const one of versions) {
    let found = card.details.get(one.version);
    if (!found) {
      found = { about: el("span", { class: "about" }), body: el("div", { class: "body" }) };
      found.root = el("details", {}, el("summary", {}, "Version " + one.version, found.about), found.body);
      found.root.open = cards.size === 1 && !card.details.size && innerWidth > 640;
      card.details.set(one.version, found);
      card.versions.append(found.root);
    }
    const networks = one.members > 1 ? one.members + " networks, mean " + one.combine + " · " : "";
    found.about.textContent = networks + (one.executor || "") + (one.waiting ? " · " + one.waiting + " waiting" : "");
    found.body.replaceChildren(el("div", { class: "column" }, chart(one.chart), calibration(one.calibration)), stages(one), drift(one.drift));
  }
}

function showEvents(events) {
  $("events-panel").hidden = !events.length;
  $("events").replaceChildren(...events.map((one) =>
    el("li", {}, el("time", { datetime: one.time }, new Date(one.time).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" })), el("span", {}, one.model ? one.model + ": " + one.message : one.message))));
}

function showStatus(status) {
  const names = new Set(status.models.map((model) => model.name));
  for (const [name, card] of cards) if (!names.has(name)) { card.root.remove(); cards.delete(name); }
  showTiles(status);
  status.models.forEach(showModel);
  $("models").append(...status.models.map((model) => cards.get(model.name).root).filter((root) => !root.isConnected));
  showEvents(status.events);
  showChoices(status.models);
  const log = status.log ? " · " + short(status.log.written) + " rows logged" + (status.log.lost ? ", " + short(status.log.lost) + " lost" : "") : "";
  $("live-text").textContent = "live · gateway process " + status.server.process + log;
  $("dot").className = "dot up";
}

async function refresh() {
  try {
    showStatus(await ask("status"));
    $("key-form").hidden = true;
    $("layout").hidden = false;
  } catch (error) {
    $("dot").className = "dot down";
    if (error.status === 401) {
      $("key-error").textContent = apiKey ? "That key is not one of the server's." : "";
      $("key-form").hidden = false;
      $("layout").hidden = true;
      $("live-text").textContent = "waiting for a key";
      apiKey = "";
      return;
    }
    $("live-text").textContent = error.status ? error.message : "no answer; trying again";
  }
  setTimeout(refresh, document.hidden ? 10000 : 2000);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = $("key").value.trim();
  $("key").value = "";
  refresh();
});
