"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const chips = all(".chip");
  const keyed = all(".series[data-key], .cell[data-key]");
  const hidden = new Set();

  const light = (key) => {
    document.body.classList.toggle("lighting", Boolean(key) && !hidden.has(key));
    for (const one of keyed) one.classList.toggle("lit", one.dataset.key === key);
  };
  const show = () => {
    for (const one of keyed) one.classList.toggle("off", hidden.has(one.dataset.key));
    for (const chip of chips) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.key)));
    const pictures = all(".strip:first-child .cell:not(.off)").length;
    const columns = (room) => Math.ceil(pictures / Math.ceil(pictures / room)) || 1;
    for (const strips of all(".strips")) {
      strips.style.setProperty("--wide", columns(13));
      strips.style.setProperty("--medium", columns(7));
    }
  };
  for (const chip of chips) {
    const key = chip.dataset.key;
    chip.addEventListener("click", () => {
      if (!hidden.delete(key)) hidden.add(key);
      show();
      light(hidden.has(key) ? "" : key);
    });
    for (const name of ["pointerenter", "focus"]) chip.addEventListener(name, () => light(key));
    for (const name of ["pointerleave", "blur"]) chip.addEventListener(name, () => light(""));
  }
  const choose = (selector, keys) => {
    const button = document.querySelector(selector);
    if (!button) return;
    button.addEventListener("click", () => {
      hidden.clear();
      for (const key of keys) hidden.add(key);
      show();
    });
  };
  choose(".chips .all", []);
  choose(".chips .none", chips.map((chip) => chip.dataset.key));

  const place = (value) => String(Number(value.toPrecision(4)));
  const score = (value) => value.toFixed(Math.abs(value) < 10 ? 3 : 1).replaceAll("-", "\u2212");
  // A point is [x, mean] or [x, mean, lowest, highest]; between two points all of it is interpolated.
  const between = (points, x) => {
    if (x < points[0][0] - 1e-9 || x > points.at(-1)[0] + 1e-9) return null;
    const next = Math.max(1, points.findIndex((point) => point[0] >= x - 1e-9));
    if (points.length === 1) return points[0];
    const [a, b] = [points[next - 1], points[next]];
    const share = b[0] === a[0] ? 0 : (x - a[0]) / (b[0] - a[0]);
    return a.map((value, place) => value + share * (b[place] - value));
  };

  const tip = document.createElement("div");
  tip.className = "tip";
  for (const chart of all("svg[data-curves]")) {
    const data = JSON.parse(chart.dataset.curves);
    const cursor = chart.querySelector(".cursor");
    const hide = () => {
      chart.classList.remove("on");
      tip.remove();
      light("");
    };
    const move = (event) => {
      const box = chart.getBoundingClientRect();
      const unit = box.width / data.width;
      const share = ((event.clientX - box.left) / unit - data.left) / (data.right - data.left);
      if (share < -0.02 || share > 1.02) return hide();
      const x = data.x[0] + Math.min(1, Math.max(0, share)) * (data.x[1] - data.x[0]);
      const rows = data.series
        .filter((one) => !hidden.has(one.key) && one.points.length)
        .map((one) => ({ one, at: between(one.points, x) }))
        .filter((row) => row.at)
        .sort((a, b) => b.at[1] - a.at[1]);
      if (!rows.length) return hide();
      const height = (value) => data.floor + ((value - data.y[0]) / (data.y[1] - data.y[0])) * (data.top - data.floor);
      const pointer = (event.clientY - box.top) / unit;
      const far = (row) => Math.abs(height(row.at[1]) - pointer);
      const near = rows.reduce((a, b) => (far(b) < far(a) ? b : a));
      const lit = far(near) < 16 ? near.one.key : "";
      light(lit);
      const across = data.left + ((x - data.x[0]) / (data.x[1] - data.x[0])) * (data.right - data.left);
      cursor.setAttribute("x1", across);
      cursor.setAttribute("x2", across);
      chart.classList.add("on");
      tip.replaceChildren(`${data.label}: ${place(x)}`);
      for (const { one, at } of rows) {
        const line = document.createElement("div");
        const key = document.createElement("i");
        key.className = `k${one.color}`;
        const range = at.length > 2 && at[3] > at[2] ? ` (${score(at[2])} to ${score(at[3])})` : "";
        line.className = one.key === lit ? "lit" : "";
        line.append(key, `${one.name}: ${score(at[1])}${range}`);
        tip.append(line);
      }
      const panel = chart.closest(".panel");
      panel.append(tip);
      const frame = panel.getBoundingClientRect();
      const left = box.left - frame.left + across * unit;
      tip.style.left = `${Math.max(4, left > frame.width / 2 ? left - tip.offsetWidth - 14 : left + 14)}px`;
      tip.style.top = `${box.top - frame.top + 20}px`;
    };
    chart.addEventListener("pointermove", move);
    chart.addEventListener("pointerdown", move);
    chart.addEventListener("pointerleave", hide);
  }
})();
