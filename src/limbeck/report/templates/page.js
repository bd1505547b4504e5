"use strict";
// All that moves on the page. Without it everything is shown, only not so handily. Text is only ever set as text.
(() => {
  const all = (query, at = document) => [...at.querySelectorAll(query)];
  const made = (tag, looks = {}, ...inner) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(looks)) element.setAttribute(name, value);
    element.append(...inner);
    return element;
  };
  const button = (words, action, looks = {}) => {
    const element = made("button", { type: "button", ...looks }, ...[words].flat());
    element.addEventListener("click", action);
    return element;
  };

  // Light or dark: what the system says until the reader says otherwise.
  function themes() {
    const group = made("div", { class: "themes", role: "group", "aria-label": "Theme" });
    for (const name of ["Auto", "Light", "Dark"]) {
      group.append(button(name, (event) => {
        if (name === "Auto") delete document.documentElement.dataset.theme;
        else document.documentElement.dataset.theme = name.toLowerCase();
        for (const each of group.children) each.setAttribute("aria-pressed", each === event.currentTarget);
      }, { "aria-pressed": name === "Auto" }));
    }
    document.querySelector("header").append(group);
  }

  // Files are made of what is on the page, when they are asked for.
  function save(name, type, text) {
    const link = made("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const slug = (words) => words.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "data";
  // RFC 4180; a text that a spreadsheet would compute is kept from it by an apostrophe.
  const field = (value) => {
    const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => rows.map((row) => row.map((value) => field(String(value))).join(",")).join("\r\n") + "\r\n";
  const words = (cell) => {
    if (cell.dataset.v !== undefined) return cell.dataset.v;
    const copy = cell.cloneNode(true);
    for (const small of all("small", copy)) small.replaceWith(` (${small.textContent})`);
    return (copy.textContent || copy.querySelector("img")?.alt || "").trim();
  };
  const ofTable = (table) => [...table.rows].map((row) => [...row.cells].map(words));
  function ofLines(held) {
    const rows = [["series", "seed", held.axis, "value"]];
    for (const line of held.lines) {
      const parts = [...line.seeds, ...(line.mean.length ? [["mean", line.mean]] : [])];
      for (const [seed, flat] of parts)
        for (let i = 0; i < flat.length; i += 2) rows.push([line.name, seed, flat[i], flat[i + 1]]);
    }
    return rows;
  }
  function downloads() {
    for (const table of all("table")) {
      const title = table.caption.textContent, figure = table.closest("figure");
      const drawn = figure?.querySelector("svg[data-lines]");
      const rows = () => drawn ? ofLines(JSON.parse(drawn.dataset.lines)) : ofTable(table);
      table.closest(".box").after(button("Download CSV", () => save(`${slug(title)}.csv`, "text/csv", csv(rows())),
        { class: "save", "aria-label": `Download CSV: ${title}` }));
    }
    for (const figure of all("figure")) {
      const drawn = figure.querySelector("svg[data-lines]");
      if (!drawn || figure.querySelector("table")) continue;
      const title = drawn.getAttribute("aria-label");
      figure.append(button("Download CSV",
        () => save(`${slug(title)}.csv`, "text/csv", csv(ofLines(JSON.parse(drawn.dataset.lines)))),
        { class: "save", "aria-label": `Download CSV: ${title}` }));
    }
    const records = () => JSON.stringify(JSON.parse(document.getElementById("records").textContent), null, 1);
    document.querySelector("footer").append(button("Download all records (JSON)",
      () => save(`${slug(document.title)}-records.json`, "application/json", records()), { class: "save" }));
  }

  // Tables are sorted by their numbers where they have any; what is not known stays at the end.
  function sorting() {
    for (const table of all("table:not(.pictures)")) {
      const body = table.tBodies[0];
      if (body.rows.length < 2) continue;
      const first = [...body.rows];
      [...table.tHead.rows[0].cells].forEach((head, column) => {
        const parts = [...head.childNodes];
        const sort = button(parts, () => {
          const now = head.getAttribute("aria-sort");
          const next = now === "ascending" ? "descending" : now === "descending" ? "" : "ascending";
          for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
          if (next) head.setAttribute("aria-sort", next);
          const sign = next === "descending" ? -1 : 1;
          const key = (row) => {
            const cell = row.cells[column], text = cell.textContent.trim();
            return { missing: text === "–" || text === "", number: Number(cell.dataset.v ?? NaN), text };
          };
          const order = (a, b) => {
            const [x, y] = [key(a), key(b)];
            if (x.missing || y.missing) return x.missing - y.missing;
            const numbers = !Number.isNaN(x.number) && !Number.isNaN(y.number);
            return sign * (numbers ? x.number - y.number : x.text.localeCompare(y.text, "en", { numeric: true }));
          };
          body.append(...(next ? [...first].sort(order) : first));
        });
        head.replaceChildren(sort);
      });
    }
  }

  // An entry of a legend shows and hides its series in the drawings beneath it.
  function legends() {
    for (const entry of all(".legend li")) {
      const name = entry.dataset.name, drawings = entry.closest(".figures");
      const toggle = button([...entry.childNodes], () => {
        const shown = toggle.getAttribute("aria-pressed") !== "true";
        toggle.setAttribute("aria-pressed", shown);
        for (const mark of all("[data-series]", drawings))
          if (mark.dataset.series === name) mark.classList.toggle("off", !shown);
      }, { "aria-pressed": true });
      entry.replaceChildren(toggle);
    }
  }

  // Tips: of the mark that is pointed at, or that the arrow keys have reached.
  const tip = made("div", { id: "tip", role: "status", "aria-live": "polite", hidden: "" });
  function tell(stop, svg) {
    const [title, ...rest] = stop.said;
    tip.replaceChildren(made("b", {}, title), ...rest.map(([style, text]) =>
      made("span", {}, ...(style ? [made("span", { class: `key ${style}` })] : []), text)));
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = box.left + stop.at[0] * scale, y = box.top + stop.at[1] * scale;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 14 + width < innerWidth ? x + 14 : Math.max(4, x - 14 - width);
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(4, Math.min(innerHeight - height - 4, y - height - 8))}px`;
  }
  let told = null;
  function still(svg) {
    tip.hidden = true;
    told = null;
    for (const mark of all(".here", svg)) mark.classList.remove("here");
    svg.querySelector(".guide")?.remove();
  }
  function show(stop, svg, byKey) {
    still(svg);
    told = { stop, svg, byKey };
    stop.mark?.classList.add("here");
    if (stop.guide) {
      const guide = document.createElementNS(svg.namespaceURI, "line");
      for (const [name, value] of Object.entries(stop.guide)) guide.setAttribute(name, value);
      guide.setAttribute("class", "guide");
      svg.append(guide);
    }
    tell(stop, svg);
  }
  function ofMarks(svg) {
    return all("[data-t]", svg).filter((mark) => !mark.closest(".off")).map((mark) => {
      const box = mark.getBBox(), [title, ...rest] = mark.dataset.t.split("\n");
      return { at: [box.x + box.width / 2, box.y + box.height / 2], said: [title, ...rest.map((text) => ["", text])], mark };
    });
  }
  const shown = (value, fraction) => fraction ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4)));
  // Along lines there is a stop at each place that a mean (or the only seed) has.
  function ofPlaces(svg) {
    const held = JSON.parse(svg.dataset.lines), [left, top, right, bottom] = held.box, places = new Map();
    const hidden = new Set(all("g.off", svg).map((group) => group.dataset.series));
    for (const line of held.lines) {
      if (hidden.has(line.name)) continue;
      const flat = line.mean.length ? line.mean : line.seeds[0]?.[1] ?? [];
      for (let i = 0; i < flat.length; i += 2) {
        if (!places.has(flat[i])) places.set(flat[i], []);
        places.get(flat[i]).push([line.style, `${line.name}: ${shown(flat[i + 1], held.fraction)}`]);
      }
    }
    const bend = held.even ? Math.log : Number, [low, high] = held.across.map(bend);
    return [...places].sort((a, b) => a[0] - b[0]).map(([place, said]) => {
      const x = high > low ? left + (bend(place) - low) / (high - low) * (right - left) : (left + right) / 2;
      const title = `${held.axis[0].toUpperCase()}${held.axis.slice(1)} ${Number(place.toPrecision(6))}`;
      return { at: [x, top + 24], said: [title, ...said], guide: { x1: x, x2: x, y1: top, y2: bottom } };
    });
  }
  function tips() {
    document.body.append(tip);
    for (const plot of all(".plot")) {
      const svg = plot.querySelector("svg"), lines = "lines" in svg.dataset;
      const stops = () => lines ? ofPlaces(svg) : ofMarks(svg);
      if (!stops().length) continue;
      let here = -1;
      const name = `${svg.getAttribute("aria-label")}. Arrow keys move from point to point.`;
      for (const [key, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": name })) plot.setAttribute(key, value);
      const nearest = (event) => {
        const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width, found = stops();
        const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
        const far = (stop) => lines ? Math.abs(stop.at[0] - x) : Math.hypot(stop.at[0] - x, stop.at[1] - y);
        const under = found.findIndex((stop) => stop.mark && stop.mark === event.target);
        if (under >= 0) return [found[under], under];
        const index = found.reduce((best, stop, i) => best < 0 || far(stop) < far(found[best]) ? i : best, -1);
        return index >= 0 && far(found[index]) < (lines ? 40 : 18) ? [found[index], index] : [null, -1];
      };
      const point = (event) => {
        const [stop, index] = nearest(event);
        if (stop) { here = index; show(stop, svg, false); } else still(svg);
      };
      plot.addEventListener("pointermove", point);
      plot.addEventListener("pointerdown", point);
      plot.addEventListener("pointerleave", () => still(svg));
      plot.addEventListener("blur", () => still(svg));
      plot.addEventListener("focus", () => {
        if (!plot.matches(":focus-visible")) return;
        const found = stops();
        here = Math.max(0, Math.min(here, found.length - 1));
        if (found.length) show(found[here], svg, true);
      });
      plot.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { still(svg); return; }
        const found = stops(), last = found.length - 1;
        const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: last }[event.key];
        if (to === undefined || last < 0) return;
        event.preventDefault();
        here = Math.max(0, Math.min(to, last));
        show(found[here], svg, true);
      });
    }
    // Scrolling takes marks away from the mouse, but not from the keyboard.
    addEventListener("scroll", () => {
      if (told?.byKey) tell(told.stop, told.svg);
      else if (told) still(told.svg);
    }, { passive: true, capture: true });
  }

  // A table that is wider than the page can be scrolled with the keyboard.
  function reachable() {
    for (const box of all(".box")) {
      const name = box.querySelector("caption").textContent;
      new ResizeObserver(() => {
        const wide = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
        for (const [key, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", name]])
          wide ? box.setAttribute(key, value) : box.removeAttribute(key);
      }).observe(box);
    }
  }

  themes(); sorting(); legends(); downloads(); tips(); reachable();
})();
