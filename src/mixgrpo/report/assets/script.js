"use strict";
(() => {
  document.documentElement.classList.add("js");

  const gallery = document.querySelector(".gallery");
  const slider = gallery && gallery.querySelector("input[type=range]");
  if (slider) {
    const labels = [...gallery.querySelectorAll(".labels li")].map((item) => item.textContent);
    // The first sheet is embedded once, as "before"; "after" borrows it so that the slider can start there.
    for (const after of gallery.querySelectorAll(".shot.after")) {
      const first = after.previousElementSibling.lastElementChild.cloneNode(true);
      first.dataset.sheet = "0";
      first.hidden = true;
      after.append(first);
    }
    const frames = [...gallery.querySelectorAll("[data-sheet]")];
    const show = () => {
      for (const frame of frames) frame.hidden = frame.dataset.sheet !== slider.value;
      gallery.querySelector("output").textContent = labels[slider.value];
    };
    slider.addEventListener("input", show);
    const button = gallery.querySelector(".play");
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.classList.remove("on");
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = -1;
      button.classList.add("on");
      const step = () => {
        slider.value = Number(slider.value) + 1;
        show();
        if (slider.value === slider.max) stop();
      };
      timer = setInterval(step, 800);
      if (slider.value === "0") show();
    });
    slider.addEventListener("pointerdown", stop);
  }

  const tip = document.createElement("div");
  tip.className = "tip";
  const number = (value) => {
    const size = Math.abs(value);
    const tiny = size && (size < 1e-3 || size >= 1e6);
    return (tiny ? value.toExponential(2) : String(Number(value.toPrecision(4)))).replaceAll("-", "\u2212");
  };
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  for (const chart of document.querySelectorAll("svg[data-hover]")) {
    const data = JSON.parse(chart.dataset.hover);
    const series = data.series.filter((one) => one.points.length);
    const cursor = chart.querySelector(".cursor");
    const hide = () => {
      chart.classList.remove("on");
      tip.remove();
    };
    const move = (event) => {
      if (!series.length) return;
      const box = chart.getBoundingClientRect();
      const unit = box.width / data.width;
      const share = ((event.clientX - box.left) / unit - data.left) / (data.right - data.left);
      if (share < -0.03 || share > 1.03) return hide();
      const wanted = data.x[0] + share * (data.x[1] - data.x[0]);
      // The series with most points says where the cursor snaps to.
      const x = nearest(series.reduce((a, b) => (b.points.length > a.points.length ? b : a)).points, wanted)[0];
      const place = data.left + ((x - data.x[0]) / (data.x[1] - data.x[0])) * (data.right - data.left);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      chart.classList.add("on");
      tip.replaceChildren(`${data.label} ${number(x)}`);
      for (const one of series) {
        const point = nearest(one.points, x);
        const key = document.createElement("i");
        key.className = `k${one.color}`;
        const at = Math.abs(point[0] - x) > 1e-9 ? ` (at ${number(point[0])})` : "";
        tip.append(document.createElement("br"), key, `${one.name}: ${number(point[1])}${at}`);
      }
      const panel = chart.closest(".panel");
      panel.append(tip);
      const frame = panel.getBoundingClientRect();
      const left = box.left - frame.left + place * unit;
      tip.style.left = `${Math.max(4, left > frame.width / 2 ? left - tip.offsetWidth - 12 : left + 12)}px`;
      tip.style.top = `${box.top - frame.top + 20}px`;
    };
    chart.addEventListener("pointermove", move);
    chart.addEventListener("pointerdown", move);
    chart.addEventListener("pointerleave", hide);
  }

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
