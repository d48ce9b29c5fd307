// The explorers of the report's first page. Each has a sheet of images, row by row (`sprites`), and facts about them:
//   latents     digits, latents, values: an image for each digit, latent, value
//   walk        digits, steps: for each pair of digits, (0, 1), (0, 2) ... (8, 9), an image for each step
//   map         x, y, label, log_prob: of each image
//   components  weight, digit, purity (of each component), draws: for each component its mean, then its draws
"use strict";
(() => {
const COLOURS = {{ colours | tojson }};
const all = JSON.parse(document.getElementById("explorers").textContent);
const minus = text => String(text).replace("-", "−");

function open(kind, begin) {
  const place = document.getElementById(`explore-${kind}`), facts = all[kind];
  if (!place || !facts) return;
  const sheet = new Image();
  const draw = (canvas, index, x = 0, y = 0) => {
    const { columns, width, height } = facts.sprites;
    canvas.getContext("2d").drawImage(sheet, (index % columns) * width, Math.floor(index / columns) * height,
      width, height, x, y, width, height);
  };
  sheet.onload = () => begin(place, facts, draw);
  sheet.src = facts.sprites.source;
}

// a control's numbers; whatever is changed, `follow` shows it
const control = (place, name) => place.querySelector(`[name=${name}]`);
function range(input, count, start) { input.min = 0; input.max = count - 1; input.step = 1; input.value = start; }
function choices(select, words, start) {
  words.forEach((word, index) => select.add(new Option(word, index)));
  select.value = start;
}
function following(place, follow) { place.addEventListener("input", follow); follow(); }
const say = (place, text) => { place.querySelector("output").textContent = minus(text); };

open("latents", (place, facts, draw) => {
  const [digit, latent, value] = ["digit", "latent", "value"].map(name => control(place, name));
  choices(digit, facts.digits, 2);
  choices(latent, facts.latents, 0);
  range(value, facts.values.length, Math.floor(facts.values.length / 2));
  following(place, () => {
    draw(place.querySelector("canvas"), (+digit.value * facts.latents.length + +latent.value) * facts.values.length + +value.value);
    const words = `latent ${facts.latents[latent.value]} at ${facts.values[value.value]}`;
    value.setAttribute("aria-valuetext", words);
    say(place, `a ${facts.digits[digit.value]} with ${words}`);
  });
});

open("walk", (place, facts, draw) => {
  const [from, to, step] = ["from", "to", "step"].map(name => control(place, name));
  const count = facts.digits.length, last = facts.steps - 1;
  choices(from, facts.digits, 3);
  choices(to, facts.digits, 8);
  range(step, facts.steps, Math.floor(last / 2));
  const pair = (i, j) => i * count - i * (i + 1) / 2 + j - i - 1;
  following(place, () => {
    let [i, j, k] = [+from.value, +to.value, +step.value];
    if (i === j) { k = i === 0 ? 0 : last; [i, j] = i === 0 ? [0, 1] : [0, i]; }
    else if (i > j) { [i, j, k] = [j, i, last - k]; }
    draw(place.querySelector("canvas"), pair(i, j) * facts.steps + k);
    const share = Math.round(100 * +step.value / last);
    step.setAttribute("aria-valuetext", `${share} %`);
    say(place, `${share} % of the way from ${facts.digits[from.value]} to ${facts.digits[to.value]}`);
  });
});

open("map", (place, facts, draw) => {
  const [map, image] = place.querySelectorAll("canvas"), context = map.getContext("2d");
  const scale = (values, size) => {
    const low = Math.min(...values), high = Math.max(...values);
    return values.map(value => 20 + (size - 40) * (value - low) / (high - low || 1));
  };
  const x = scale(facts.x, map.width), y = scale(facts.y.map(value => -value), map.height);
  let chosen = 0;
  const dot = (index, radius) => { context.beginPath(); context.arc(x[index], y[index], radius, 0, 7); };
  function show(index) {
    chosen = index;
    context.clearRect(0, 0, map.width, map.height);
    x.forEach((_, one) => { context.fillStyle = COLOURS[facts.label[one] % 10]; dot(one, 4); context.fill(); });
    // the digits name their regions, whoever cannot tell the colours apart
    context.font = "bold 30px system-ui, sans-serif";
    context.textAlign = "center"; context.lineWidth = 6; context.strokeStyle = "#fff"; context.fillStyle = "#000";
    [...new Set(facts.label)].forEach(label => {
      const ours = facts.label.flatMap((one, place) => one === label ? [place] : []);
      const middle = values => ours.map(one => values[one]).sort((a, b) => a - b)[Math.floor(ours.length / 2)];
      context.strokeText(label, middle(x), middle(y) + 10);
      context.fillText(label, middle(x), middle(y) + 10);
    });
    context.strokeStyle = "#000"; context.lineWidth = 3; dot(index, 9); context.stroke();
    draw(image, index);
    say(place, `a ${facts.label[index]}, log p(x) = ${facts.log_prob[index].toFixed(1)} nats`);
  }
  // the nearest point, among those for which `allowed` holds
  function nearest(at, allowed = () => true) {
    let best = chosen, least = Infinity;
    x.forEach((_, one) => {
      const distance = (x[one] - at[0]) ** 2 + (y[one] - at[1]) ** 2;
      if (distance < least && allowed(x[one] - at[0], y[one] - at[1])) { best = one; least = distance; }
    });
    return best;
  }
  map.addEventListener("pointermove", event => {
    const box = map.getBoundingClientRect();
    show(nearest([(event.clientX - box.left) * map.width / box.width, (event.clientY - box.top) * map.height / box.height]));
  });
  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  map.addEventListener("keydown", event => {
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    // within 45 degrees of the key's direction
    show(nearest([x[chosen], y[chosen]], (right, down) => {
      const along = right * way[0] + down * way[1], across = Math.abs(right * way[1] + down * way[0]);
      return along > 0 && across <= along;
    }));
  });
  show(0);
});

open("components", (place, facts, draw) => {
  const component = control(place, "component"), order = facts.weight.map((_, one) => one);
  order.sort((a, b) => facts.digit[a] - facts.digit[b] || facts.weight[b] - facts.weight[a]);
  range(component, order.length, 0);
  following(place, () => {
    const canvas = place.querySelector("canvas"), one = order[component.value];
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    for (let cell = 0; cell <= facts.draws; cell++) {
      draw(canvas, one * (facts.draws + 1) + cell, 32 * (cell % 3), 32 * Math.floor(cell / 3));
    }
    const words = `component ${one + 1}: weight ${facts.weight[one].toFixed(2)} %, ` +
      `${facts.purity[one].toFixed(0)} % of its labelled images are ${facts.digit[one]}s`;
    component.setAttribute("aria-valuetext", words);
    say(place, words);
  });
});
})();
