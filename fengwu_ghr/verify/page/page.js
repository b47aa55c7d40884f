"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const styles = [["#0072b2", ""], ["#e69f00", "7 4"], ["#009e73", "2 3"], ["#cc79a7", "9 3 2 3"], ["#56b4e9", "4 2"],
  ["#d55e00", "1 3"]];
// A source looks the same in every chart; the truth is drawn in ink.
const styleOf = (name) => name === "truth" ? ["currentColor", ""] : styles[data.sources.indexOf(name) % styles.length];
const element = (id) => document.getElementById(id);
const plain = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const digits = (value) => value === null ? "–" : Number(value.toPrecision(3)).toString();

function choices(id, values, changed) {
  const select = element(id);
  if (!select) return;
  values.forEach((value) => select.add(new Option(value, value)));
  select.addEventListener("change", changed);
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

function hourTicks(low, high) {
  const step = [6, 12, 24, 48].find((s) => (high - low) / s <= 11) || 96, found = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) found.push(t);
  return found;
}

// A chart of lines: {name, x, y, lower, upper}. Values of null are left out.
function chart(id, lines, options) {
  const width = 760, height = 380, left = 66, right = 24, top = 14, bottom = 44;
  const points = lines.flatMap((line) => line.x.map((x, i) =>
    [x, line.y[i], line.lower ? line.lower[i] : line.y[i], line.upper ? line.upper[i] : line.y[i]]))
    .filter((p) => p[1] !== null && (!options.log || p[1] > 0));
  if (!points.length) { element(id).innerHTML = "<p class='quiet'>There is nothing to show here.</p>"; return; }
  const fx = options.logx ? Math.log10 : (v) => v, fy = options.log ? Math.log10 : (v) => v;
  const xs = points.map((p) => fx(p[0])), ys = points.flatMap((p) => p.slice(1).map(fy)).filter(Number.isFinite);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (options.zero) { y0 = Math.min(0, y0); y1 = Math.max(0, y1); }
  if (options.top !== undefined) y1 = options.top;
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  if (y0 === y1) { y0 -= 1; y1 += 1; }
  const px = (v) => left + (fx(v) - x0) / (x1 - x0) * (width - left - right);
  const py = (v) => height - bottom - (fy(v) - y0) / (y1 - y0) * (height - top - bottom);
  const xt = options.logx ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].filter((t) => fx(t) >= x0 && fx(t) <= x1)
    : options.hours ? hourTicks(x0, x1) : ticks(x0, x1, 8);
  const yt = options.log ? ticks(y0, y1, 6).map((t) => 10 ** t) : ticks(y0, y1, 6);
  let svg = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${plain(options.label)}">`;
  yt.forEach((t) => { svg += `<line class="axis" x1="${left}" x2="${width - right}" y1="${py(t)}" y2="${py(t)}"/>`
    + `<text x="${left - 6}" y="${py(t) + 4}" text-anchor="end">${options.log ? t.toExponential(0) : digits(t)}</text>`; });
  xt.forEach((t) => { svg += `<line class="axis" x1="${px(t)}" x2="${px(t)}" y1="${top}" y2="${height - bottom}"/>`
    + `<text x="${px(t)}" y="${height - bottom + 18}" text-anchor="middle">${t}</text>`; });
  svg += `<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${options.xlabel}</text>`;
  lines.forEach((line) => {
    const [colour, dash] = styleOf(line.name);
    const kept = line.x.map((_, k) => k).filter((k) => line.y[k] !== null && (!options.log || line.y[k] > 0));
    if (line.lower) {
      const band = kept.filter((k) => line.lower[k] !== null && line.upper[k] !== null);
      const edge = (values, order) => order.map((k) => `${px(line.x[k])},${py(values[k])}`).join(" ");
      svg += `<polygon fill="${colour}" fill-opacity=".15" points="${edge(line.upper, band)} ${edge(line.lower, band.slice().reverse())}"/>`;
    }
    const path = kept.map((k, n) => `${n ? "L" : "M"}${px(line.x[k]).toFixed(1)} ${py(line.y[k]).toFixed(1)}`).join("");
    svg += `<path fill="none" stroke="${colour}" stroke-width="2" stroke-dasharray="${dash}" d="${path}"/>`;
    if (kept.length <= 45) kept.forEach((k) => { svg += `<circle cx="${px(line.x[k])}" cy="${py(line.y[k])}" r="3" fill="${colour}">`
      + `<title>${plain(line.name)}, ${line.x[k]}: ${digits(line.y[k])}</title></circle>`; });
  });
  const legend = lines.map((line) => `<span><svg viewBox="0 0 40 10"><line x1="0" x2="40" y1="5" y2="5" stroke-width="3" `
    + `stroke="${styleOf(line.name)[0]}" stroke-dasharray="${styleOf(line.name)[1]}"/></svg>${plain(line.name)}</span>`);
  element(id).innerHTML = `${svg}</svg><div class="legend">${legend.join("")}</div>`;
}

const score = (name, source, channel, region) => {
  const array = data.scores[name];
  if (!array || !array[source]) return null;
  return array[source][data.channels.indexOf(channel)][data.regions.indexOf(region)];
};
const scaled = (values, factor) => values && values.map((v) => v === null ? null : v * factor);

function drawCurves() {
  const [what, channel, region] = ["curve-score", "curve-channel", "curve-region"].map((id) => element(id).value);
  const unit = data.units[channel], factor = what === "acc" || what === "activity" ? 1 : unit[1];
  const lines = data.sources.map((source) => ({ name: source, x: data.leads, y: scaled(score(what, source, channel, region), factor),
    lower: what === "rmse" ? scaled(score("rmse_lower", source, channel, region), factor) : null,
    upper: what === "rmse" ? scaled(score("rmse_upper", source, channel, region), factor) : null })).filter((line) => line.y);
  const units = what === "acc" || what === "activity" ? "" : ` [${unit[0]}]`;
  element("curve-title").textContent = `${data.names[what]} of ${channel}${units}, ${region}, by lead in hours`;
  chart("curve", lines, { xlabel: "lead [h]", zero: what !== "acc", top: what === "acc" ? 1 : undefined,
    hours: true, label: element("curve-title").textContent });
}

function drawCard() {
  const [baseline, region] = ["card-baseline", "card-region"].map((id) => element(id).value);
  const card = data.cards[baseline], r = data.regions.indexOf(region);
  const shown = card.leads.map((_, i) => i);
  let html = `<table class="card"><thead><tr><th>hours</th>${shown.map((i) => `<th>${card.leads[i]}</th>`).join("")}</tr></thead><tbody>`;
  data.channels.forEach((channel, c) => {
    html += `<tr><td>${channel}</td>` + shown.map((i) => {
      const [relative, decided] = card.cells[c][r][i];
      if (relative === null) return "<td></td>";
      const better = relative < 0, size = Math.abs(relative) > 5 ? "▲" : "▴", down = Math.abs(relative) > 5 ? "▼" : "▾";
      const sign = decided ? (better ? size : down) : "·";
      return `<td class="${decided ? better ? "better" : "worse" : ""}" title="${channel}, ${card.leads[i]} h: RMSE ${relative > 0 ? "+" : ""}${relative.toFixed(1)} %">${sign}</td>`;
    }).join("") + "</tr>";
  });
  const [won, lost, open] = card.counts[r];
  element("card").innerHTML = html + "</tbody></table>";
  const rows = data.regions.map((name, i) => `<tr><td>${plain(name)}</td><td>${(100 * card.better[i]).toFixed(1)} %</td>`
    + `${card.counts[i].map((count) => `<td>${count}</td>`).join("")}</tr>`);
  element("card-regions").innerHTML = "<table class='card'><thead><tr><th>region</th><th>smaller RMSE</th><th>▲ won</th>"
    + `<th>▼ lost</th><th>· undecided</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
  element("card-title").textContent = `Against ${baseline}, ${region}: of ${won + lost + open} targets ${won} won, ${lost} lost, `
    + `${open} undecided at 95 % (${card.method}; ${card.dates} initial times); smaller RMSE in ${(100 * card.better[r]).toFixed(1)} %.`;
}

function drawMaps() {
  const [source, channel, lead] = ["map-source", "map-channel", "map-lead"].map((id) => element(id).value);
  element("maps").innerHTML = ["bias", "rmse"].map((kind) => {
    const map = data.maps[`${kind}|${source}|${channel}|${lead}`];
    if (!map) return "";
    const [west, south, east, north] = data.extent, frame = [west, 90 - north, east - west, north - south];
    return `<figure><svg viewBox="${frame.join(" ")}" role="img" aria-label="${kind} of ${channel}"><image href="${map.image}" `
      + `x="${frame[0]}" y="${frame[1]}" width="${frame[2]}" height="${frame[3]}" `
      + `preserveAspectRatio="none"/><path class="shore" d="${data.shores}"/></svg><svg viewBox="0 0 360 26">`
      + `<image href="${data.bars[kind]}" x="60" width="240" height="10" preserveAspectRatio="none"/>`
      + `<text x="60" y="24" text-anchor="middle">${digits(map.low)}</text><text x="300" y="24" text-anchor="middle">${digits(map.high)}</text>`
      + `<text x="180" y="24" text-anchor="middle">${map.units}</text></svg>`
      + `<figcaption>${kind === "bias" ? "Bias (forecast minus truth)" : "RMSE"} of ${channel}, ${plain(source)}, +${lead} h</figcaption></figure>`;
  }).join("");
}

function drawSpectra() {
  const [channel, lead] = ["spectra-channel", "spectra-lead"].map((id) => element(id).value);
  const key = `${channel}|${lead}`, lines = [], agree = [];
  data.sources.forEach((source) => {
    const found = data.spectra[`${source}|${key}`];
    if (!found) return;
    if (!lines.length) lines.push({ name: "truth", x: found.n, y: found.truth });
    lines.push({ name: source, x: found.n, y: found.forecast });
    agree.push({ name: source, x: found.n, y: found.coherence });
  });
  chart("spectra-power", lines, { logx: true, log: true, xlabel: "total wavenumber", label: `power of ${channel}` });
  chart("spectra-coherence", agree, { logx: true, xlabel: "total wavenumber", zero: true, top: 1, label: `coherence of ${channel}` });
}

function drawEvents() {
  const [event, what, region] = ["event-name", "event-score", "event-region"].map((id) => element(id).value);
  const r = data.regions.indexOf(region);
  const lines = data.sources.map((source) => {
    const found = data.events[`${what}|${source}|${event}`];
    return found && { name: source, x: data.leads, y: found[r] };
  }).filter(Boolean);
  chart("event", lines, { hours: true, xlabel: "lead [h]", zero: true, label: `${what} of ${event}` });
}

function drawStations() {
  const [channel, lead] = ["station-channel", "station-lead"].map((id) => element(id).value);
  const found = data.stations.maps[`${channel}|${lead}`] || [];
  const limit = data.stations.limits[channel] || 1, colour = (v) => v < 0 ? "#0072b2" : "#d55e00";
  const dots = found.map(([name, x, y, v]) => `<circle cx="${x + 180}" cy="${90 - y}" r="${0.8 + 1.6 * Math.min(1, Math.abs(v) / limit)}" `
    + `fill="${colour(v)}" fill-opacity=".7"><title>${plain(name)}: ${digits(v)}</title></circle>`).join("");
  element("station-map").innerHTML = `<svg viewBox="0 0 360 180" role="img" aria-label="stations"><path class="shore" d="${data.shores180}"/>${dots}</svg>`;
  element("station-title").textContent = `Bias of ${channel} at ${found.length} stations, +${lead} h: blue too low, orange too high, `
    + `larger is further off (full size at ${digits(limit)} ${data.stations.units[channel] || ""}).`;
  const lines = data.sources.map((source) => {
    const scores = data.stations.scores[`${source}|${channel}`];
    return scores && { name: source, x: data.stations.leads, y: scores };
  }).filter(Boolean);
  element("station-curve-title").textContent = `RMSE of ${channel} at the stations of ${data.stations.region}, by lead`;
  chart("station-curve", lines, { hours: true, xlabel: "lead [h]", zero: true, label: `RMSE of ${channel} at stations` });
}

choices("curve-score", Object.keys(data.names).filter((name) => data.scores[name]), drawCurves);
["curve-channel"].forEach((id) => choices(id, data.channels, drawCurves));
["curve-region"].forEach((id) => choices(id, data.regions, drawCurves));
drawCurves();
if (Object.keys(data.cards).length) {
  choices("card-baseline", Object.keys(data.cards), drawCard);
  choices("card-region", data.regions, drawCard);
  drawCard();
}
if (Object.keys(data.maps).length) {
  choices("map-source", data.sources, drawMaps);
  choices("map-channel", data.shown_channels, drawMaps);
  choices("map-lead", data.shown_leads, drawMaps);
  drawMaps();
}
if (Object.keys(data.spectra).length) {
  choices("spectra-channel", data.shown_channels, drawSpectra);
  choices("spectra-lead", data.shown_leads, drawSpectra);
  drawSpectra();
}
if (data.event_names.length) {
  choices("event-name", data.event_names, drawEvents);
  choices("event-score", data.event_scores, drawEvents);
  choices("event-region", data.regions, drawEvents);
  drawEvents();
}
if (data.stations) {
  choices("station-channel", data.stations.channels, drawStations);
  choices("station-lead", data.stations.map_leads, drawStations);
  drawStations();
}
