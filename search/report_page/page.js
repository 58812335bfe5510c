"use strict";
// Draws the report from the JSON in the page. Text enters by textContent only.

const report = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const USUAL_WIDTH = 720;
const MARGIN = { left: 56, right: 16, top: 24, bottom: 38 };
const MOST_COMPARED = 4;

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const chance = (share) => share > 0.999 ? "> 99.9%" : percent(share);
const ms = (value) => value < 0.1 ? `${Number((1000 * value).toPrecision(4))} us` : `${Number(value.toPrecision(4))} ms`;
const millions = (count) => `${(count / 1e6).toFixed(2)}M`;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function table(columns, rows) {
  const numeric = columns.map((_, at) => rows.length > 0 && rows.every((row) => /^\d/.test(row[at])));
  const head = element("tr");
  columns.forEach((name, at) => head.append(element("th", numeric[at] ? { class: "number" } : {}, name)));
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    row.forEach((cell, at) => {
      const kind = numeric[at] ? "number" : "text";
      line.append(cell instanceof Node ? cell : element("td", { class: kind }, String(cell)));
    });
    body.append(line);
  }
  return element("table", {}, element("thead", {}, head), body);
}

function archText(arch) {
  const stages = arch.stages.map((one) => `${one.channels} x ${one.depth}, k${one.kernel}, e${one.expand}`);
  return [`resolution ${arch.resolution}, stem ${arch.stem_channels}`, ...stages, `head ${arch.head_channels}`].join("\n");
}

// --- axes ---------------------------------------------------------------------------------------

function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 3));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((one) => (high - low) / one <= 6);
  const found = [];
  for (let at = Math.ceil(low / wide); at * wide <= high * (1 + 1e-9); at += 1) {
    found.push(Number((at * wide).toPrecision(10)));
  }
  return found;
}

function range(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
}

function plot(id, xs, ys, xName, yName, yText = (value) => value) {
  const svg = byId(id);
  svg.replaceChildren();
  const width = svg.clientWidth || USUAL_WIDTH;
  const height = Math.round(Math.min(380, Math.max(240, 0.6 * width)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const [xLow, xHigh] = range(xs), [yLow, yHigh] = range(ys);
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = (value) => MARGIN.left + ((value - xLow) / (xHigh - xLow)) * (right - MARGIN.left);
  const y = (value) => bottom - ((value - yLow) / (yHigh - yLow)) * (bottom - MARGIN.top);
  for (const value of ticks(yLow, yHigh)) {
    drawn(svg, "line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) });
    drawn(svg, "text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, yText(value));
  }
  for (const value of ticks(xLow, xHigh)) {
    drawn(svg, "text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, String(value));
  }
  drawn(svg, "text", { x: right, y: height - 4, "text-anchor": "end" }, xName);
  drawn(svg, "text", { x: 0, y: 12 }, yName);
  return { svg, x, y, right, bottom };
}

function path(points) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// --- the tip ------------------------------------------------------------------------------------

function tell(mark, text) {
  const tip = byId("tip");
  const show = (event) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = event.clientX ?? box.right, top = event.clientY ?? box.bottom;
    tip.style.left = `${Math.max(4, Math.min(left + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(top + 14, innerHeight - tip.offsetHeight - 8))}px`;
  };
  const hide = () => { tip.hidden = true; };
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}

// --- sections -----------------------------------------------------------------------------------

function headline(run) {
  const best = run.candidates.find((one) => one.best), first = best.devices[0];
  byId("headline").textContent = `${percent(best.top1)} in ${ms(first.measured_ms)} on ${first.device}`;
  const kept = best.devices.every((one) => one.measured_ms <= one.budget_ms);
  byId("promise").textContent =
    best.devices.map((one) => `budget ${ms(one.budget_ms)} on ${one.device}`).join(", ") +
    (kept ? ": kept, as measured with the delivered binary" : ": not kept");
  const figures = [
    [percent(best.top1), "top-1 on validation images"],
    [run.test_top1 === null ? "-" : percent(run.test_top1), "top-1 on test images, by the binary"],
    [ms(first.measured_ms), "measured, p50"],
    [ms(first.predicted_ms), `predicted, ${ms(first.interval_ms[0])} to ${ms(first.interval_ms[1])}`],
    [chance(first.probability), "probability of keeping the budget, as predicted"],
    [millions(best.macs), "MACs"],
    [best.params.toLocaleString("en"), "parameters"],
  ];
  byId("figures").replaceChildren(...figures.map(([value, name]) =>
    element("div", { class: "figure" }, element("b", {}, value), element("span", {}, name))));
}

function front(run) {
  const compared = [];
  const budget = run.candidates[0].devices[0].budget_ms;
  const measured = (one) => one.devices[0].measured_ms;
  const xs = [...run.trials.map((one) => one.latency_ms), ...run.candidates.map(measured), budget];
  const ys = [...run.trials.map((one) => one.top1), ...run.candidates.map((one) => one.top1)];
  const { svg, x, y, bottom } = plot("front", xs, ys, "latency in ms", "top-1", percent);
  drawn(svg, "line", { class: "limit", x1: x(budget), x2: x(budget), y1: MARGIN.top, y2: bottom });
  drawn(svg, "text", { x: x(budget) + 4, y: 12, "text-anchor": "end" }, `budget ${ms(budget)}`);
  for (const one of run.trials) {
    const dot = drawn(svg, "circle", { class: "explored", cx: x(one.latency_ms), cy: y(one.top1), r: 3 });
    tell(dot, `${percent(one.top1)}, predicted ${ms(one.latency_ms)}\n${archText(one.arch)}`);
  }
  const line = run.candidates.filter((one) => one.front).sort((a, b) => measured(a) - measured(b));
  const steps = line.flatMap((one, at) => [
    ...(at ? [[x(measured(one)), y(line[at - 1].top1)]] : []), [x(measured(one)), y(one.top1)],
  ]);
  drawn(svg, "path", { class: "step", d: path(steps) });
  run.candidates.forEach((one, number) => {
    const late = one.devices.some((at) => at.measured_ms > at.budget_ms);
    const kind = `measured${one.best ? " best" : ""}${late ? " late" : ""}`;
    const mark = drawn(svg, "circle", {
      class: kind, cx: x(measured(one)), cy: y(one.top1), r: one.best ? 8 : 6, tabindex: 0, role: "button",
      "aria-label": `architecture ${number + 1}`,
    });
    const times = one.devices.map((at) => `${at.device}: measured ${ms(at.measured_ms)}, predicted ${ms(at.predicted_ms)}`);
    tell(mark, `${one.best ? "chosen: " : ""}${percent(one.top1)}\n${times.join("\n")}\n${archText(one.arch)}`);
    const toggle = () => {
      const at = compared.indexOf(one);
      if (at >= 0) compared.splice(at, 1);
      else if (compared.push(one) > MOST_COMPARED) compared.shift();
      for (const other of svg.querySelectorAll(".measured")) {
        const index = Number(other.getAttribute("aria-label").split(" ")[1]) - 1;
        other.classList.toggle("compared", compared.includes(run.candidates[index]));
      }
      compare(run, compared);
    };
    mark.addEventListener("click", toggle);
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
    });
  });
  compare(run, compared);
}

function compare(run, compared) {
  const place = byId("comparison");
  if (!compared.length) { place.replaceChildren(); return; }
  const rows = [
    ["top-1", (one) => percent(one.top1)],
    ...run.devices.map((name, at) => [`measured on ${name}`, (one) => ms(one.devices[at].measured_ms)]),
    ...run.devices.map((name, at) => [`predicted on ${name}`, (one) => ms(one.devices[at].predicted_ms)]),
    ["MACs", (one) => millions(one.macs)],
    ["parameters", (one) => one.params.toLocaleString("en")],
    ["resolution", (one) => one.arch.resolution],
    ["stem", (one) => one.arch.stem_channels],
    ...run.candidates[0].arch.stages.map((_, at) => [`stage ${at + 1}`, (one) => {
      const stage = one.arch.stages[at];
      return `${stage.channels} x ${stage.depth}, k${stage.kernel}, e${stage.expand}`;
    }]),
    ["head", (one) => one.arch.head_channels],
  ];
  const names = compared.map((one) => `${run.candidates.indexOf(one) + 1}${one.best ? " (chosen)" : ""}`);
  const filled = rows.map(([name, value]) => [name, ...compared.map((one) => String(value(one)))]);
  place.replaceChildren(element("div", { class: "scroll" }, table(["architecture", ...names], filled)));
}

function agreement(run) {
  const all = run.candidates.map((one) => one.devices[0]);
  const values = all.flatMap((one) => [one.measured_ms, ...one.interval_ms]);
  const { svg, x, y } = plot("agreement", values, values, "predicted ms", "measured ms");
  const low = Math.min(...values), high = Math.max(...values);
  drawn(svg, "line", { class: "grid", x1: x(low), y1: y(low), x2: x(high), y2: y(high) });
  all.forEach((one, number) => {
    const height = y(one.measured_ms);
    drawn(svg, "line", { class: "interval", x1: x(one.interval_ms[0]), x2: x(one.interval_ms[1]), y1: height, y2: height });
    const best = run.candidates[number].best ? " best" : "";
    const mark = drawn(svg, "circle", { class: `measured${best}`, cx: x(one.predicted_ms), cy: height, r: 6 });
    const error = percent(one.predicted_ms / one.measured_ms - 1);
    tell(mark, `predicted ${ms(one.predicted_ms)}, measured ${ms(one.measured_ms)}: ${error}`);
  });
}

function progress(run) {
  if (!run.trials.length) { byId("progress").replaceChildren(); return; }
  const count = run.trials.length;
  const { svg, x, y } = plot("progress", [1, count], run.trials.map((one) => one.top1), "evaluated", "top-1", percent);
  const steps = [];
  let best = 0;
  run.trials.forEach((one, at) => {
    drawn(svg, "circle", { class: "explored", cx: x(at + 1), cy: y(one.top1), r: 3 });
    if (at) steps.push([x(at + 1), y(best)]);
    best = Math.max(best, one.top1);
    steps.push([x(at + 1), y(best)]);
  });
  drawn(svg, "path", { class: "step", d: path(steps) });
}

function architecture(run) {
  const widest = Math.max(...run.stages.map((one) => one.channels));
  const highest = Math.max(...run.stages.map((one) => one.size));
  byId("architecture").replaceChildren(...run.stages.map((stage) => {
    const blocks = Array.from({ length: stage.depth }, () => {
      const block = element("div", { class: stage.text ? "block" : "block end" });
      block.style.height = `${12 + (76 * stage.size) / highest}px`;
      block.style.width = `${8 + (44 * stage.channels) / widest}px`;
      return block;
    });
    return element("div", { class: "stage" }, element("div", { class: "blocks" }, ...blocks),
      element("div", {}, stage.name), element("div", {}, `${stage.size} x ${stage.size} x ${stage.channels}`),
      element("div", {}, stage.text || "\u00a0"));
  }));
}

function kernels(run) {
  const total = run.kernels.reduce((sum, one) => sum + one.latency_us, 0);
  const most = Math.max(...run.kernels.map((one) => one.latency_us));
  byId("kernels").replaceChildren(table(["layer", "kernel", "", "us", "share", "roofline"], run.kernels.map((one) => {
    const bar = element("span", { class: `bar ${one.operator}` });
    bar.style.width = `${(100 * one.latency_us) / most}%`;
    return [element("td", { class: "name" }, one.layer), one.workload, element("td", { class: "bar-cell" }, bar),
      `${one.latency_us.toFixed(2)}${one.measured ? "" : " (estimated)"}`, percent(one.latency_us / total),
      one.roofline === null ? "-" : percent(one.roofline)];
  })));
}

function cell(value, budget) {
  return element("td", { class: `number ${value <= budget ? "kept" : "broken"}` }, ms(value));
}

function cross(run) {
  const rows = report.cross.length ? report.cross : run.devices.length > 1 ? run.candidates.map((one, at) => ({
    name: `${at + 1}${one.best ? " (chosen)" : ""}`, top1: one.top1, devices: one.devices,
  })) : [];
  byId("cross-section").hidden = !rows.length;
  if (!rows.length) return;
  byId("cross-note").textContent = report.cross.length
    ? "Each row is the winner of one device's search, measured on all of them; red breaks that device's budget."
    : "Every finalist, measured on all devices; red breaks that device's budget.";
  const names = rows[0].devices.map((one) => `${one.device} (${ms(one.budget_ms)})`);
  byId("cross").replaceChildren(table([report.cross.length ? "winner of" : "architecture", "top-1", ...names],
    rows.map((row) => [row.name, percent(row.top1), ...row.devices.map((one) => cell(one.measured_ms, one.budget_ms))])));
}

function show(run) {
  headline(run);
  front(run);
  agreement(run);
  progress(run);
  architecture(run);
  kernels(run);
  cross(run);
  byId("provenance").replaceChildren(table(["", ""], run.provenance));
}

const chooser = byId("run");
report.runs.forEach((run, at) => chooser.append(element("option", { value: at }, run.name)));
byId("chooser").hidden = report.runs.length < 2;
const redraw = () => show(report.runs[Number(chooser.value)]);
let drawnWidth = innerWidth;
chooser.addEventListener("change", redraw);
addEventListener("resize", () => {
  if (innerWidth === drawnWidth) return; // a phone's address bar changes the height only
  drawnWidth = innerWidth;
  redraw();
});
redraw();
