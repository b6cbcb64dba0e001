// What a reader's eyes would find wrong with the page, as lists of sentences. Run by test_browser.py in the page itself.
const found = { contrast: [], outside: [], overlaps: [], scrolls: [], drawings: [] };
document.querySelectorAll("details").forEach((details) => { details.open = true; });

const pixel = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
function rgba(color) { // of any color that CSS knows, also color-mix()
  pixel.clearRect(0, 0, 1, 1);
  pixel.fillStyle = color;
  pixel.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, under) => under.map((u, i) => top[i] * top[3] + u * (1 - top[3]));
function background(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
}
function luminance(rgb) { // WCAG 2.2, "relative luminance"
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element) {
  const under = background(element), color = rgba(getComputedStyle(element).color);
  for (let e = element; e; e = e.parentElement) color[3] *= Number(getComputedStyle(e).opacity);
  const [high, low] = [luminance(over(color, under)), luminance(under)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

// Every line of text: where it stands, how it stands out, and whether it lies inside the box that it belongs to.
const lines = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement, text = node.data.trim().slice(0, 40);
  if (!text || ["STYLE", "SCRIPT"].includes(element.tagName) || !element.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const rects = [...range.getClientRects()].filter((r) => r.width > 0.5 && r.height > 0.5);
  if (!rects.length) continue;
  const ratio = contrast(element);
  if (ratio < 4.5) found.contrast.push(`${ratio.toFixed(2)} "${text}" <${element.tagName} class="${element.className}">`);
  const home = element.closest(element.matches(".tick") ? ".scroll, .curve" : "td, th, .curve, .paste, pre, main");
  const box = home.getBoundingClientRect();
  for (const r of rects) {
    if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 2 || r.bottom > box.bottom + 2)
      found.outside.push(`"${text}" leaves its ${home.tagName}.${home.className}`);
    lines.push({ text, node, left: r.left, right: r.right, top: r.top, bottom: r.bottom, area: r.width * r.height });
  }
}

lines.sort((a, b) => a.top - b.top);
lines.forEach((a, i) => {
  for (let j = i + 1; j < lines.length && lines[j].top < a.bottom; j++) {
    const b = lines[j];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - b.top;
    if (wide > 0 && high > 0 && wide * high > 0.2 * Math.min(a.area, b.area)) found.overlaps.push(`"${a.text}" and "${b.text}"`);
  }
});

for (const element of document.querySelectorAll("body *")) {
  const style = getComputedStyle(element);
  if (style.overflowX === "visible" || element.closest("svg")) continue;
  if (element.scrollWidth > element.clientWidth + 1) {
    const how = ["auto", "scroll"].includes(style.overflowX) ? "scrolls" : "clips";
    found.scrolls.push(`${how} ${element.querySelector("table")?.className ?? element.className}`);
  }
}

for (const svg of document.querySelectorAll("svg")) {
  const box = svg.getBoundingClientRect(), label = svg.getAttribute("aria-label");
  if (box.width < 100 || box.height < 20) found.drawings.push(`"${label}" has ${box.width} x ${box.height} pixels`);
  for (const shape of svg.children) {
    const r = shape.getBoundingClientRect();
    if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1)
      found.drawings.push(`<${shape.tagName} class="${shape.classList}"> leaves "${label}"`);
    const stroke = rgba(getComputedStyle(shape).stroke), paper = background(svg.parentElement);
    const [high, low] = [luminance(over(stroke, paper)), luminance(paper)].sort((a, b) => b - a);
    if (!shape.matches(".grid") && (high + 0.05) / (low + 0.05) < 3) // WCAG 1.4.11; grid lines only help
      found.drawings.push(`<${shape.tagName} class="${shape.classList}"> of "${label}" is too faint`);
  }
}

for (const list of Object.keys(found)) found[list] = [...new Set(found[list])];
found.lines = lines.length;
found.width = [document.documentElement.scrollWidth, innerWidth];
const sections = [...document.querySelectorAll("section")], seen = (s) => s.checkVisibility() && s.offsetHeight > 40;
found.sections = sections.filter(seen).map((s) => s.id);
found.hidden = sections.filter((s) => !seen(s)).map((s) => s.innerText.slice(0, 40));
return found;
