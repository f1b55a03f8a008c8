// This module runs the pad on the page: strokes, buttons, preview, bars and sentences.
import {GRID, SIZE, isDot, probabilities, rasterise} from './raster.js';
import {sender} from './kernel.js';

function mount(pad) {
  const [canvas, seen, status, bars] = ['.ink', '.seen', '[role=status]', 'ol'].map(name => pad.querySelector(name));
  const send = sender(pad);
  let strokes = [], pointer = null, box, drawings = 0;
  bars.innerHTML = Array.from({length: 10}, (_, digit) => `<li>${digit}<span><i></i></span><b></b></li>`).join('');

  // Show a sentence; `words` in backquotes become code.
  const say = text => status.replaceChildren(...text.split('`').map((part, i) =>
    i % 2 ? Object.assign(document.createElement('code'), {textContent: part}) : part));

  function draw() {
    const pixels = Math.round(SIZE * (window.devicePixelRatio || 1)), context = canvas.getContext('2d');
    canvas.width = canvas.height = pixels;  // clears it, too
    context.scale(pixels / SIZE, pixels / SIZE);
    Object.assign(context, {strokeStyle: '#fff', lineWidth: 24, lineCap: 'round', lineJoin: 'round'});
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(stroke[0][0] - 0.01, stroke[0][1]);  // so that a dot has a length, without which it is not drawn
      for (const point of stroke) context.lineTo(...point);
      context.stroke();
    }
  }

  // Show ten probabilities, or empty bars for null; return a sentence for them.
  function showBars(values) {
    const [best, second] = values ? [...values.keys()].sort((a, b) => values[b] - values[a]) : [];
    [...bars.children].forEach((bar, digit) => {
      bar.className = digit === best ? 'best' : '';
      bar.style.setProperty('--part', `${values ? 100 * values[digit] : 0}%`);
      bar.querySelector('b').textContent = values ? `${Math.round(100 * values[digit])} %` : '';
    });
    bars.classList.remove('old');
    bars.ariaBusy = 'false';
    const maybe = values?.[second] > 0.1, a = digit => `a${digit === 8 ? 'n' : ''} ${digit}`;
    if (values?.[best] < 0.6) return `Perhaps ${a(best)}${maybe ? ` or ${a(second)}` : ''}.`;
    return values && `Looks like ${best}${maybe ? `, perhaps ${second}` : ''}.`;
  }

  // Show the drawing, and its 28 x 28 pixels; return the pixels.
  function show() {
    const pixels = rasterise(strokes), image = new ImageData(GRID, GRID);
    pixels.forEach((value, i) => image.data.set([value * 255, value * 255, value * 255, 255], 4 * i));
    seen.getContext('2d').putImageData(image, 0, 0);
    draw();
    return pixels;
  }

  // Show the drawing, and give it to a listener on the page that prevents the default, or else to the kernel.
  function changed() {
    const pixels = show(), mine = ++drawings;
    if (isDot(strokes)) {
      showBars(null);
      say(pointer === null ? 'Not sent, as it is too small to be read: draw a larger digit.' : '');
      return;
    }
    bars.classList.add('old');
    bars.ariaBusy = 'true';
    const isNewest = () => mine === drawings;
    async function respondWith(answer, sent = '') {
      const timer = setTimeout(() => isNewest() && say('Waiting for the kernel and the endpoint.'), 1500);
      let values = null, text = sent;
      try {
        const numbers = await answer;
        if (numbers) values = probabilities(numbers);
      } catch (error) { text = error.message; }
      clearTimeout(timer);
      if (!isNewest()) return;
      const words = showBars(values);
      say(words ? `${words} ${sent}` : text);
    }
    const detail = {data: [pixels], respondWith};
    say('');
    if (!pad.dispatchEvent(new CustomEvent('digit', {bubbles: true, cancelable: true, detail}))) return;
    respondWith(send(pixels, isNewest), strokes.length ? 'Sent to `data`.' : 'Cleared: `data` is blank.');
  }

  function add(event) {
    strokes.at(-1).push([(event.clientX - box.left) * SIZE / box.width, (event.clientY - box.top) * SIZE / box.height]);
  }

  function finish(event) {
    if (event.pointerId !== pointer) return;
    pointer = null;
    changed();
  }

  // In JupyterLab the focus makes this notebook the active one, which a touch alone would not. The classic
  // notebook must not get it: it disables its shortcuts while an output has the focus.
  pad.addEventListener('pointerdown', () => { if (!window.IPython) pad.focus({preventScroll: true}); });
  pad.addEventListener('mousedown', event => event.preventDefault());
  canvas.addEventListener('pointerdown', event => {
    if (pointer !== null || event.button) return;
    pointer = event.pointerId;
    box = canvas.getBoundingClientRect();  // kept for the whole stroke, as an output above may move the page
    try { canvas.setPointerCapture(pointer); } catch { /* the pointer is up already; its end event still comes */ }
    strokes.push([]);
    add(event);
    draw();
  });
  canvas.addEventListener('pointermove', event => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    (events.length ? events : [event]).forEach(add);
    if ('live' in pad.dataset) changed();  // a fast predictor gets each frame, not each stroke
    else draw();
  });
  for (const type of ['pointerup', 'pointercancel', 'lostpointercapture']) canvas.addEventListener(type, finish);
  canvas.addEventListener('contextmenu', event => {  // a finger that rests while drawing
    if (pointer === null) return;
    event.preventDefault();
    event.stopPropagation();
  });
  const undo = () => { if (pointer === null && strokes.pop()) changed(); };
  const clear = () => { if (pointer === null) { strokes = []; changed(); } };
  pad.querySelector('.undo').addEventListener('click', undo);
  pad.querySelector('.clear').addEventListener('click', clear);
  addEventListener('keydown', event => {  // on the window: JupyterLab's shortcuts take keys from the document
    const {key, ctrlKey, metaKey, shiftKey} = event, control = ctrlKey || metaKey, [target] = event.composedPath();
    if (!pad.contains(target) || shiftKey) return;
    const act = control ? {z: undo}[key] : {Delete: clear, Backspace: clear}[key];
    if (!act && (control || key !== 'Enter' || target === pad)) return;  // on a button Enter stays the browser's
    event.stopImmediatePropagation();
    if (act) event.preventDefault();
    act?.();
  }, true);

  // Show the drawing that was made before the page was saved, see local_mode/run.py.
  const {strokes: before, answer} = JSON.parse(pad.dataset.drawn ?? '{}');
  strokes = before ?? [];
  show();
  if (answer) say(`${showBars(probabilities(answer))} Sent to \`data\`.`);
  else say(before ? 'Sent to `data`.' : 'Draw a digit here.');
}

// Find pads by a selector, as the classic notebook runs this script in <head>, and a page may have two pads.
for (const pad of document.querySelectorAll('.digit-pad:not([data-mounted])')) {
  pad.dataset.mounted = '';
  mount(pad);
}
