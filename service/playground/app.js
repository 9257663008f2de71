// The playground: choose a model, make an input, step a sequence through it and watch what it answers and remembers.

import { bounds, colour, curves, heatMap } from "./plots.js";

const $ = (id) => document.getElementById(id);
const MAX_CHANNELS = 8, MAX_CALLS = 30;
const page = { card: null, inputs: [], sequence: null, turn: 0, outputs: [], hidden: [], busy: false };
let drawing = null;

async function call(method, path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if ($("key").value) headers["X-API-Key"] = $("key").value;
  const text = body && JSON.stringify(body);
  if (method !== "GET") showCall(method, path, text);
  const answer = await fetch(path, { method, headers, body: text });
  const document = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(document.detail);
  return document;
}

function showCall(method, path, text) {
  const line = document.createElement("li"), pre = document.createElement("pre");
  const key = $("key").value ? " -H 'X-API-Key: …'" : "";
  const data = text ? ` -H 'Content-Type: application/json' -d '${text}'` : "";
  pre.textContent = `curl -s -X ${method} ${location.origin}${path}${key}${data}`;
  line.append(pre);
  $("calls").prepend(line);
  while ($("calls").children.length > MAX_CALLS) $("calls").lastChild.remove();
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// -- the model -----------------------------------------------------------------------------------------------------

async function loadModels() {
  const { models } = await call("GET", "/v1/models");
  $("model").replaceChildren(...models.map((model) => {
    const option = new Option(`${model.name}${model.ready ? "" : " (not ready)"}`, model.name);
    option.disabled = !model.ready;
    return option;
  }));
  const wanted = new URLSearchParams(location.search).get("model");
  const first = models.find((m) => m.ready && m.name === wanted) || models.find((m) => m.ready);
  if (!first) return say("No model is ready.", true);
  $("model").value = first.name;
  await chooseModel();
}

async function chooseModel() {
  const card = page.card = await call("GET", `/v1/models/${$("model").value}`);
  $("description").textContent = card.description;
  const facts = {
    Task: card.task,
    Cell: `${card.cell}${card.layers ? `, ${card.layers} × ${card.hidden_size}` : ""}${card.bidirectional ? ", bidirectional" : ""}`,
    Parameters: card.parameters.toLocaleString(),
    Input: shapeText(card.inputs[0]),
    Output: shapeText(card.outputs[0]),
    State: card.states.map((s) => `${s.name} [${s.shape}]`).join(", "),
    "Runs on": card.provider,
    Data: card.data ? `${card.data.name} (${card.data.licence})` : "not named",
  };
  $("card").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]));
  const rows = card.metrics.flatMap((m) => [
    [`${m.name}, ${m.split}`, m.value, m.unit], ...m.references.map((r) => [`${r.name} ${r.source && `(${r.source})`}`, r.value, m.unit]),
  ]);
  $("metrics").hidden = !rows.length;
  $("metrics").tBodies[0].replaceChildren(...rows.map(([name, value, unit]) => {
    const row = document.createElement("tr");
    row.append(cell("td", name), cell("td", `${Number(value.toPrecision(4))} ${unit || ""}`));
    return row;
  }));
  const features = isDrawn() ? Array.from({ length: width() }, (_, n) => new Option(input().labels?.[n] || `feature ${n + 1}`, n)) : [];
  $("feature").replaceChildren(...features);
  $("draw-tools").hidden = !isDrawn();
  $("text-label").textContent = inputForm();
  $("step").disabled = !card.streaming;
  await reset();
  if (isDrawn()) return example("sine");
  $("text").value = firstText();
  readText();
}

const cell = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
const input = () => page.card.inputs[0];
const isDrawn = () => input().dtype === "float32" && input().shape.length === 2;
const isToken = () => input().dtype === "int64" && input().shape.length === 1;
const isText = () => isToken() && Boolean(input().vocabulary);
const numTokens = () => input().vocabulary?.length ?? input().token_counts?.[0] ?? Infinity;
const width = () => input().shape[1];
const shapeText = (t) => `[${t.shape.join(" × ")}] ${t.dtype}${t.unit ? `, ${t.unit}` : ""}`;
const outputNames = () => page.card.outputs[0].labels || page.card.outputs[0].vocabulary || [];
const answersTokens = () => isToken() && kind() !== "value" && page.card.outputs[0].shape.at(-1) === numTokens();
const unnamed = (channel) => (answersTokens() ? `token ${channel}` : `output ${channel + 1}`);
const nameOf = (channel) => JSON.stringify(outputNames()[channel] ?? unnamed(channel)).slice(1, -1).replace(/^ $/, "space");

// -- the input -----------------------------------------------------------------------------------------------------

function inputForm() {
  if (isText()) return "Text: one token a character";
  if (isToken()) return `Token ids: ${idRange()}`;
  return `Inputs: a list of steps, each a list of ${input().dtype === "int64" ? "whole numbers" : "numbers"}`;
}

const idRange = () => `whole numbers from 0${numTokens() < Infinity ? ` to ${numTokens() - 1}` : ""}`;

function firstText() {
  if (isText()) return "In the beginning";
  if (isToken()) return Array.from({ length: 16 }, (_, n) => n % numTokens()).join(" ");
  const zeros = input().shape.slice(1).reduceRight((inner, size) => Array(size).fill(inner), 0);
  return JSON.stringify(Array(16).fill(zeros));
}

function example(kind) {
  const length = Math.min(256, Math.max(1, Number($("length").value) || 40));
  const shape = {
    sine: (t, f) => Math.sin((2 * Math.PI * t * (1 + f / 3)) / 20 + f), step: (t) => (t >= length / 2 ? 1 : 0),
    noise: () => Math.random() * 2 - 1, zeros: () => 0,
  }[kind];
  setInputs(Array.from({ length }, (_, t) => Array.from({ length: width() }, (_, f) => Number(shape(t, f).toFixed(3)))));
}

function setInputs(inputs) {
  page.inputs = inputs;
  $("text").value = JSON.stringify(inputs);
  showInputs();
}

function readText() {
  const text = $("text").value;
  try {
    page.inputs = isText() ? tokens(text) : isToken() ? ids(text) : JSON.parse(text);
    say(`${page.inputs.length} steps.`);
    showInputs();
  } catch (error) { page.inputs = []; say(error.message, true); }
}

function ids(text) {
  return text.split(/[\s,[\]]+/).filter(Boolean).map((word) => {
    if (!/^\d+$/.test(word) || Number(word) >= numTokens()) throw new Error(`Expected token ids, ${idRange()}, got ${word}.`);
    return Number(word);
  });
}

function tokens(text) {
  const places = new Map(input().vocabulary.map((token, id) => [token, id]));
  return [...text].map((letter) => {
    if (!places.has(letter)) throw new Error(`The vocabulary has no ${JSON.stringify(letter)}.`);
    return places.get(letter);
  });
}

function showInputs() {
  if (!isDrawn() || !page.inputs.every((row) => Array.isArray(row) && row.length === width())) return;
  const range = bounds(page.inputs, [-1.5, 1.5]), channels = Array.from({ length: width() }, (_, n) => n);
  drawing = curves($("drawing"), page.inputs, channels, page.inputs.length, range, Number($("feature").value));
  $("range").textContent = `Draw with the pointer: ${range.map((v) => v.toFixed(1)).join(" to ")}.`;
}

function draw(event) {
  if (!(event.buttons & 1) || !drawing) return;
  const step = Math.min(page.inputs.length - 1, Math.max(0, drawing.stepAt(event.offsetX)));
  page.inputs[step][Number($("feature").value)] = Number(drawing.valueAt(event.offsetY).toFixed(3));
  setInputs(page.inputs);
}

// -- the sequence --------------------------------------------------------------------------------------------------

async function reset() {
  page.turn++;  // what is still under way belongs to the sequence before
  page.sequence = null; page.outputs = []; page.hidden = [];
  say("A new sequence begins with the first step.");
  showResults();
}

async function advance(all) {
  if (page.busy) return;
  page.busy = true;
  try {
    const turn = page.turn;
    if (!page.card.streaming) await predictWhole(turn);
    else while ((await stepOnce(turn)) && all);
  } catch (error) { say(error.message, true); }
  page.busy = false;
}

async function stepOnce(turn) {
  const at = page.outputs.length, path = `/v1/models/${page.card.name}/sequences`;
  if (at >= page.inputs.length) { say("Every step of the input has run. Begin a new sequence, or change the input."); return false; }
  if (!page.sequence) {
    const begun = await call("POST", path, { ttl_seconds: 600 });
    if (turn !== page.turn) return false;
    page.sequence = begun.sequence_id;
  }
  const body = { inputs: [page.inputs[at]], step: at, return_state: true };
  const answer = await call("POST", `${path}/${page.sequence}/steps`, body);
  if (turn !== page.turn) return false;
  page.outputs.push(meant(answer.outputs[0]));
  page.hidden.push((answer.final_state.h ?? Object.values(answer.final_state)[0]).flat(Infinity));
  say(`Sequence ${page.sequence} stands at step ${answer.step} of ${page.inputs.length}.`);
  showResults();
  return true;
}

async function predictWhole(turn) {
  const answer = await call("POST", `/v1/models/${page.card.name}/predict`, { sequences: [{ inputs: page.inputs }] });
  if (turn !== page.turn) return;
  page.outputs = answer.sequences[0].outputs.map(meant);
  say("This model needs whole sequences: answered in one call, without states in between.");
  showResults();
}

const kind = () => page.card.outputs[0].kind;

// logits say nothing to people: shown as the probabilities that they stand for
function meant(row) {
  if (kind() !== "logit") return row;
  const powers = row.map((logit) => Math.exp(logit - Math.max(...row))), sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const amount = (value) => (kind() === "value" ? `${Number(value.toPrecision(4))} ${page.card.outputs[0].unit ?? ""}`.trim() : `${(100 * value).toFixed(1)} %`);

// of many: the likeliest, or, where they are no rivals, some from end to end
function shownChannels() {
  const last = page.outputs.at(-1) ?? [], order = last.map((_, n) => n);
  if (last.length <= MAX_CHANNELS) return order;
  if (kind() !== "value") return order.sort((a, b) => last[b] - last[a]).slice(0, MAX_CHANNELS);
  return Array.from({ length: MAX_CHANNELS }, (_, n) => Math.round((n * (last.length - 1)) / (MAX_CHANNELS - 1)));
}

function showResults() {
  const channels = shownChannels(), slots = Math.max(page.inputs.length, page.outputs.length, 1);
  const shown = page.outputs.map((row) => channels.map((channel) => row[channel]));
  curves($("outputs"), page.outputs, channels, slots, page.card?.outputs[0].kind === "value" ? bounds(shown) : [0, 1]);
  $("legend").replaceChildren(...channels.map((channel, index) => {
    const item = document.createElement("li"), mark = document.createElement("span");
    mark.className = "swatch"; mark.style.background = colour(index);
    item.append(mark, nameOf(channel));
    return item;
  }));
  const last = page.outputs.at(-1);
  $("latest").textContent = last ? `Step ${page.outputs.length}: ` + channels.map((c) => `${nameOf(c)} ${amount(last[c])}`).join(", ") : "Nothing has run yet.";
  heatMap($("heat"), page.hidden, slots);
  $("heat-text").textContent = page.hidden.length ? `· ${page.hidden[0].length} units, ${page.hidden.length} steps` : page.card?.streaming === false ? "· this model shows no states between steps" : "";
}

const guarded = (work) => async (event) => { try { await work(event); } catch (error) { say(error.message, true); } };

$("model").addEventListener("change", guarded(chooseModel));
$("key").addEventListener("change", guarded(loadModels));
$("feature").addEventListener("change", showInputs);
$("text").addEventListener("input", readText);
$("drawing").addEventListener("pointerdown", draw);
$("drawing").addEventListener("pointermove", draw);
$("step").addEventListener("click", () => advance(false));
$("run").addEventListener("click", () => advance(true));
$("reset").addEventListener("click", reset);
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", guarded(() => example(button.dataset.example)));
}
const redraw = () => { showInputs(); showResults(); };
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", redraw);

await guarded(loadModels)();
if (new URLSearchParams(location.search).has("run")) await advance(true);
