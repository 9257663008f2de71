// Curves and heat maps on a canvas, in the colours of the page. Knows nothing of models or calls.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// told apart in light and dark, and by people who see colours otherwise (Okabe and Ito)
export const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#7f7f7f"];
export const colour = (index) => COLOURS[index % COLOURS.length];

function surface(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  return { g, width, height };
}

// of all values, and of `always`
export function bounds(rows, always = []) {
  const values = [...always, ...rows.flat()];
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) return [-1, 1];
  if (low === high) { low -= 1; high += 1; }
  return [low, high];
}

// rows: [step][channel]; slots: how many steps the width stands for
export function curves(canvas, rows, channels, slots, [low, high], emphasised = -1) {
  const { g, width, height } = surface(canvas);
  const left = 58, bottom = 18, top = 8, right = 8;
  const x = (t) => left + (slots < 2 ? 0.5 : t / (slots - 1)) * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  g.font = "11px system-ui, sans-serif";
  g.textBaseline = "middle";
  for (const v of [low, (low + high) / 2, high]) {
    g.strokeStyle = css("--line");
    g.beginPath(); g.moveTo(left, y(v)); g.lineTo(width - right, y(v)); g.stroke();
    g.fillStyle = css("--soft");
    g.textAlign = "right"; g.fillText(Number(v.toPrecision(3)), left - 6, y(v));
  }
  g.textAlign = "left"; g.fillText("step 1", left, height - 8);
  g.textAlign = "right"; g.fillText(String(slots), width - right, height - 8);
  channels.forEach((channel, index) => {
    g.strokeStyle = g.fillStyle = colour(index);
    g.lineWidth = channel === emphasised ? 3 : 1.75;
    g.beginPath();
    rows.forEach((row, t) => (t ? g.lineTo(x(t), y(row[channel])) : g.moveTo(x(t), y(row[channel]))));
    g.stroke();
    if (rows.length) {
      g.beginPath(); g.arc(x(rows.length - 1), y(rows.at(-1)[channel]), 3, 0, 7); g.fill();
    }
  });
  return { stepAt: (px) => Math.round(((px - left) / (width - left - right)) * (slots - 1)),
           valueAt: (py) => high - ((py - top) / (height - top - bottom)) * (high - low) };
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// columns: [step][unit], values from -1 to 1
export function heatMap(canvas, columns, slots) {
  const { g, width, height } = surface(canvas);
  if (!columns.length) return;
  const units = columns[0].length, zero = rgb(css("--zero")), low = rgb(css("--low")), high = rgb(css("--high"));
  const image = new ImageData(Math.max(slots, columns.length), units);
  columns.forEach((column, t) => column.forEach((value, unit) => {
    const share = Math.min(1, Math.abs(value)), end = value < 0 ? low : high, at = (unit * image.width + t) * 4;
    for (let n = 0; n < 3; n++) image.data[at + n] = zero[n] + (end[n] - zero[n]) * share;
    image.data[at + 3] = 255;
  }));
  const small = new OffscreenCanvas(image.width, units);
  small.getContext("2d").putImageData(image, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(small, 0, 0, width, height);
}
