"use strict";
// The plot of size, quality and speed: any number along either axis, the numbers of a point on pointing or focus.
// Where a point stands along an axis, and the axis' ticks, come with the page; without this script its first view stays.
(() => {
  const LEFT = 58, RIGHT = 16, TOP = 18, BOTTOM = 46, STEP = 13, HIGHEST = 3, CROWD = 40;

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function bestPoints(across, up, shown) {
    const cost = (axis, i) => axis.better === "lower" ? axis.values[i] : -axis.values[i];
    const isWorse = (i, j) => cost(across, j) <= cost(across, i) && cost(up, j) <= cost(up, i) &&
      (cost(across, j) < cost(across, i) || cost(up, j) < cost(up, i));
    return shown.filter(i => !shown.some(j => isWorse(i, j))).sort((i, j) => across.places[i] - across.places[j]);
  }

  function enhance(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg"), panel = figure.querySelector(".facts"), form = figure.querySelector("form");
    const layer = svg.querySelector(".points"), points = [...svg.querySelectorAll(".point")];
    let order = [], current = -1;

    function draw() {
      const width = Math.max(280, figure.clientWidth), height = Math.round(Math.min(480, Math.max(280, width * .58)));
      const [across, up, area] = ["across", "up", "area"].map(name => data.axes[form.elements[name].value]);
      const x = place => LEFT + place * (width - LEFT - RIGHT), y = place => height - BOTTOM - place * (height - TOP - BOTTOM);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      drawAxes(across, up, x, y, width, height);
      const shown = points.map((_, i) => i).filter(i => across.values[i] !== null && up.values[i] !== null);
      const best = bestPoints(across, up, shown);
      drawFront(across, best.map(i => [x(across.places[i]), y(up.places[i])]));
      const most = Math.max(...(area ? area.values : []).filter(value => value !== null));
      const taken = [], [least, more] = shown.length > CROWD ? [4, 4] : [5, 9];
      order = shown.sort((i, j) => across.places[i] - across.places[j] || up.places[i] - up.places[j]);
      points.forEach((point, i) => { point.style.display = shown.includes(i) ? "inline" : "none"; });
      for (const i of order) {
        const radius = area && area.values[i] !== null ? least + more * Math.sqrt(area.values[i] / most) : least;
        const [left, top] = [x(across.places[i]), y(up.places[i])];
        points[i].setAttribute("transform", `translate(${left} ${top})`);
        points[i].classList.toggle("best", best.includes(i));
        points[i].querySelector("circle").setAttribute("r", radius);
        placeName(points[i].querySelector(".name"), left, top, taken);
      }
      for (const i of [...order].reverse()) layer.append(points[i]);
      focusable(order.includes(current) ? current : order[0]);
      hide();
    }

    // Labels of marks that lie on each other stand above each other, as far as they are still seen to belong there.
    function placeName(name, left, top, taken) {
      const isFree = at => !taken.some(([x, y]) => Math.abs(x - left) < STEP && Math.abs(y - at) < STEP);
      const at = Array.from({length: HIGHEST + 1}, (_, step) => top + 4 - STEP * step).find(isFree);
      name.style.display = at === undefined ? "none" : "inline";
      if (at === undefined) return;
      taken.push([left, at]);
      name.setAttribute("y", at - top);
    }

    function drawAxes(across, up, x, y, width, height) {
      const grid = svg.querySelector(".grid"), right = width - RIGHT, bottom = height - BOTTOM;
      grid.replaceChildren();
      let before = -Infinity;
      for (const [place, label] of across.ticks) {
        grid.append(element("line", {x1: x(place), x2: x(place), y1: TOP, y2: bottom}));
        if (x(place) - before < 7 * label.length + 4) continue;
        before = x(place);
        grid.append(element("text", {x: x(place), y: bottom + 18, "text-anchor": "middle"}, label));
      }
      for (const [place, label] of up.ticks) {
        grid.append(element("line", {x1: LEFT, x2: right, y1: y(place), y2: y(place)}));
        grid.append(element("text", {x: LEFT - 8, y: y(place) + 4, "text-anchor": "end"}, label));
      }
      grid.append(element("text", {x: right, y: bottom + 38, "text-anchor": "end"}, across.label + " →"));
      grid.append(element("text", {x: 0, y: TOP - 6}, "↑ " + up.label));
    }

    // The border of what can be had: at least this good across, what is the best upwards?
    function drawFront(across, corners) {
      const steps = corners.slice(1).map(([x, y]) => across.better === "lower" ? `H${x}V${y}` : `V${y}H${x}`);
      svg.querySelector(".front").setAttribute("d", corners.length ? `M${corners[0]}${steps.join("")}` : "");
    }

    function focusable(i) {
      current = i;
      points.forEach((point, j) => point.setAttribute("tabindex", i === j ? 0 : -1));
    }

    function show(i) {
      const {name, facts} = data.points[i], list = document.createElement("dl");
      for (const pair of facts) pair.forEach((text, k) => {
        list.append(Object.assign(document.createElement(k ? "dd" : "dt"), {textContent: text}));
      });
      panel.replaceChildren(Object.assign(document.createElement("b"), {textContent: name}), list);
      panel.hidden = false;
      points.forEach((point, j) => {
        point.classList.toggle("at", i === j);
        point.setAttribute("aria-selected", i === j);
      });
      const mark = points[i].getBoundingClientRect(), frame = figure.getBoundingClientRect();
      const left = mark.right - frame.left + 8, top = mark.top - frame.top - 8;
      const fits = left + panel.offsetWidth <= frame.width;
      const beside = fits ? left : Math.max(0, mark.left - frame.left - 8 - panel.offsetWidth);
      panel.style.left = `${beside}px`;
      panel.style.top = `${beside || fits ? top : mark.bottom - frame.top + 8}px`;
    }

    function hide() {
      panel.hidden = true;
      points.forEach(point => {
        point.classList.remove("at");
        point.setAttribute("aria-selected", false);
      });
    }

    function move(event, i) {
      const at = order.indexOf(i), last = order.length - 1;
      const to = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last}[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      focusable(order[Math.min(last, Math.max(0, to))]);
      points[current].focus();
    }

    svg.removeAttribute("role");
    svg.removeAttribute("aria-label");
    layer.setAttribute("role", "listbox");
    layer.setAttribute("aria-label", "Models: the arrow keys go from one to the next");
    points.forEach((point, i) => {
      point.setAttribute("role", "option");
      point.querySelector("title").remove();  // would stand over the panel
      point.addEventListener("mouseenter", () => show(i));
      point.addEventListener("mouseleave", hide);
      point.addEventListener("click", () => { focusable(i); point.focus(); show(i); });
      point.addEventListener("focus", () => show(i));
      point.addEventListener("blur", hide);
      point.addEventListener("keydown", event => move(event, i));
    });
    form.hidden = false;
    form.addEventListener("change", draw);
    new ResizeObserver(draw).observe(figure);
    draw();
  }

  document.querySelectorAll(".tradeoff").forEach(enhance);

  // Paper has no summary to click on.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach(one => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach(one => { one.open = false; }));
})();
