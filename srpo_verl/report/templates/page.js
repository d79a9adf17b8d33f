"use strict";
(() => {
  const tip = document.getElementById("tip");
  const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

  function showTip(event, text) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 12 : event.clientX + 16;
    const top = Math.min(event.clientY + 14, innerHeight - box.height - 8);
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = top + "px";
  }

  // --- charts: legend buttons hide a line everywhere in the figure; pointing at a chart reads it
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const series of button.closest(".figure").querySelectorAll(".series")) {
        if (series.dataset.label === button.dataset.label) series.classList.toggle("off", !on);
      }
    });
  }

  for (const chart of document.querySelectorAll(".chart[data-lines]")) {
    const data = JSON.parse(chart.dataset.lines);
    const [left, right, top, bottom] = data.places;
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cross.setAttribute("class", "cross");
    chart.append(cross);
    chart.addEventListener("pointerleave", () => { tip.hidden = true; cross.removeAttribute("d"); });
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * data.width;
      const at = data.x[0] + ((place - left) / (right - left)) * (data.x[1] - data.x[0]);
      const hidden = new Set([...chart.querySelectorAll(".series.off")].map((series) => series.dataset.label));
      let nearest = null;
      const rows = [];
      for (const line of data.lines) {
        if (hidden.has(line.label) || !line.x.length) continue;
        let best = 0;
        line.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(line.x[best] - at)) best = i; });
        if (nearest === null || Math.abs(line.x[best] - at) < Math.abs(nearest - at)) nearest = line.x[best];
        const spread = line.low ? ` ± ${number(line.y[best] - line.low[best])}` : "";
        rows.push(`${line.label}: ${number(line.y[best])}${spread}`);
      }
      if (nearest === null) return;
      const x = left + ((nearest - data.x[0]) / (data.x[1] - data.x[0] || 1)) * (right - left);
      cross.setAttribute("d", `M${x} ${top}V${bottom}`);
      showTip(event, `${data.x_label} ${number(nearest)}\n${rows.join("\n")}`);
    });
  }

  // --- tokens
  const source = document.getElementById("token-samples");
  if (!source) return;
  const runs = JSON.parse(source.textContent);
  const [runBox, stepBox, colorBox] = ["run", "step", "color"].map((name) => document.getElementById("token-" + name));
  const view = document.getElementById("token-view");
  const scale = document.getElementById("token-scale");
  const names = new Map([...colorBox.options].map((option) => [option.value, option.textContent]));
  const SIGNED = new Set(["advantage"]);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function options(box, labels, chosen) {
    box.replaceChildren(...labels.map((label, index) => new Option(label, String(index))));
    box.value = String(Math.min(chosen, labels.length - 1));
  }

  function range(sample, name) {
    const values = [];
    for (const prompt of sample.prompts) {
      for (const rollout of prompt.rollouts) values.push(...(rollout[name] || []).filter((value) => value !== null));
    }
    if (!values.length) return null;
    values.sort((a, b) => a - b);
    const low = values[Math.floor(0.01 * (values.length - 1))];
    const high = values[Math.ceil(0.99 * (values.length - 1))];
    if (SIGNED.has(name)) {
      const most = Math.max(Math.abs(values[0]), Math.abs(values[values.length - 1])) || 1;
      return [-most, most];
    }
    return name === "log_prob" ? [low, 0] : [Math.min(0, low), high || 1];
  }

  function tint(value, span, name) {
    if (value === null || value === undefined || !span) return "";
    if (SIGNED.has(name)) {
      const strength = Math.min(1, Math.abs(value) / span[1]);
      return `rgba(var(--${value < 0 ? "hot" : "cold"}), ${(0.62 * strength).toFixed(3)})`;
    }
    let part = (value - span[0]) / (span[1] - span[0] || 1);
    if (name === "log_prob") part = 1 - part;
    return `rgba(var(--heat), ${(0.75 * Math.max(0, Math.min(1, part))).toFixed(3)})`;
  }

  function drawScale(span, name) {
    scale.replaceChildren();
    if (!span) {
      scale.append("not known in this step");
      return;
    }
    const bar = element("i");
    const stops = [0, 0.25, 0.5, 0.75, 1].map((part) => tint(span[0] + part * (span[1] - span[0]), span, name));
    bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    const unit = colorBox.selectedOptions[0].dataset.unit;
    scale.append(number(span[0]), bar, `${number(span[1])} ${unit}`);
  }

  function tokens(rollout, span, name) {
    const box = element("div", "response");
    rollout.tokens.forEach((text, index) => {
      if (text === "") return;
      const token = element("span");
      const parts = text.split("\n");
      parts.forEach((part, at) => {
        if (at) token.append(element("span", "newline", "⏎"), "\n");
        token.append(part);
      });
      const value = rollout[name] ? rollout[name][index] : null;
      token.style.background = tint(value, span, name);
      const counts = !rollout.counts || rollout.counts[index] > 0;
      if (!counts) token.className = "uncounted";
      token.addEventListener("pointerenter", (event) => {
        const lines = [...names].map(([field, title]) => `${title}: ${number(rollout[field] ? rollout[field][index] : null)}`);
        showTip(event, [`token ${index + 1}: ${JSON.stringify(text)}`, ...lines, ...(counts ? [] : ["not in the loss"])].join("\n"));
      });
      token.addEventListener("pointerleave", () => { tip.hidden = true; });
      box.append(token);
    });
    if (rollout.length > rollout.tokens.length) {
      box.append(element("span", "none", ` … ${rollout.length - rollout.tokens.length} more tokens`));
    }
    return box;
  }

  function shown(demonstration) {
    const side = element("div");
    if (!demonstration) {
      side.append(element("span", "none", "no teacher asked"));
      return side;
    }
    const from = demonstration.rollout === null ? demonstration.source : `${demonstration.source}, rollout ${demonstration.rollout + 1}`;
    side.append(element("span", "caption", `the teacher is shown (${from})${demonstration.shortened ? ", shortened" : ""}`));
    side.append(element("div", "shown", demonstration.text || "the verifier's feedback alone"));
    return side;
  }

  function rolloutBox(rollout, index, span, name) {
    const box = element("div", "rollout");
    const head = element("div", "head");
    head.append(element("b", "", `rollout ${index + 1}`), `${rollout.correct ? "✓ correct" : "✗ failed"}, reward ${number(rollout.reward)}`);
    const parts = [];
    if (rollout.sdpo_share > 0) parts.push(`distilled${rollout.sdpo_share < 1 ? " × " + number(rollout.sdpo_share) : ""}`);
    if (rollout.grpo_share > 0) parts.push(`policy gradient${rollout.grpo_share < 1 ? " × " + number(rollout.grpo_share) : ""}`);
    const route = element("span", "route " + (rollout.sdpo_share > 0 ? "c0" : "c1"), parts.join(" + ") || "in no branch");
    head.append(route, `${rollout.length} tokens`);
    const side = element("div");
    side.append(element("span", "caption", "the policy wrote"), tokens(rollout, span, name));
    box.append(head, shown(rollout.demonstration), side);
    return box;
  }

  function draw() {
    const name = colorBox.value;
    const sample = runs[Number(runBox.value)].steps[Number(stepBox.value)];
    const span = range(sample, name);
    drawScale(span, name);
    view.replaceChildren(...sample.prompts.map((prompt) => {
      const box = element("article", "prompt");
      const question = element("div", "question");
      for (const message of prompt.messages) {
        question.append(element("div", "role", message.role), element("div", "message", message.content));
      }
      box.append(question, ...prompt.rollouts.map((rollout, index) => rolloutBox(rollout, index, span, name)));
      return box;
    }));
  }

  function pickRun() {
    options(stepBox, runs[Number(runBox.value)].steps.map((sample) => String(sample.step)), Number(stepBox.value) || 0);
    draw();
  }

  options(runBox, runs.map((run) => run.label), 0);
  runBox.addEventListener("change", pickRun);
  stepBox.addEventListener("change", draw);
  colorBox.addEventListener("change", draw);
  pickRun();
})();
