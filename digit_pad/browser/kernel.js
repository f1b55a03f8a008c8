// This module sends drawings to the notebook's kernel: it sets `data` and returns the prediction of `predictor`.

// The code that the kernel runs; decimal points make the pixels floats.
const assign = pixels => `data = [[${pixels.map(value => value.toFixed(4)).join(', ')}]]`;
const NUMPY = '__import__("numpy")';
const PREDICT = `${NUMPY}.asarray(predictor.predict(${NUMPY}.array(data, "float32")), float).ravel().tolist()`;

// Return the endpoint's numbers from the kernel's reply, or null if the endpoint was not asked.
function readReply({status, ename, user_expressions}) {
  if (status !== 'ok') throw Error(`Not sent: the kernel could not take the drawing (${ename || status}).`);
  const answer = user_expressions?.answer;
  if (!answer) return null;
  if (answer.status === 'ok') {
    try { return JSON.parse(answer.data['text/plain']); } catch { return []; }  // NaN is not JSON
  }
  if (answer.ename === 'NameError' && answer.evalue.includes("'predictor'")) {
    throw Error('Sent to `data`. Deploy an endpoint as `predictor` to see its prediction here.');
  }
  const reason = answer.evalue.replace(/^An error occurred .*? operation: /, '').trim().split('\n')[0] || answer.ename;
  throw Error(`Sent to \`data\`, but the endpoint gave no answer: ${reason.slice(0, 200)}`);
}

// Return the path of a panel's notebook, as in the server's list of sessions. JupyterLab says "Path: a/b.ipynb", in the
// reader's language, in the second line of its tab's title, while its address may name a folder. Notebook 7 has no tabs.
function notebookPath(panel, base) {
  const tab = document.querySelector(`.lm-TabBar-tab[data-id="${panel.id}"]`);
  if (tab?.title) return tab.title.split('\n')[1]?.replace(/^.*?[:\uff1a]\s*/, '');
  const path = location.pathname.startsWith(base) ? location.pathname.slice(base.length) : '';
  const match = path.match(/^(?:(?:lab|doc)(?:\/workspaces\/[^/]+)?\/tree|notebooks)\/(.+)$/);
  return match && decodeURIComponent(match[1]);
}

// Return an error after which another try may succeed. Browsers drop connections when the network changes, and each
// container that Docker starts changes it. Sending a drawing twice does no harm.
const lost = text => Object.assign(Error(text), {lost: true});

// Return a function that runs code in this page's notebook: it takes the content of an execute_request, and
// promises the kernel's reply. Each error is one sentence.
function findKernel(pad) {
  if (window.IPython?.notebook) return runInClassic;
  const element = document.getElementById('jupyter-config-data');
  if (!element) {
    throw Error('this page has no Jupyter server (open the notebook in JupyterLab or Jupyter Notebook, ' +
      'or use DigitPad of digit_pad).');
  }
  const config = JSON.parse(element.textContent), base = new URL(config.baseUrl || '/', location.href);
  const panel = pad.closest('.jp-NotebookPanel'), path = panel && notebookPath(panel, base.pathname);
  if (!path) throw Error('this pad is not inside its notebook (draw in the notebook itself).');
  return async content => {
    for (let tries = 1; ; tries++) {
      try { return await runOnServer(config, base, path, content); }
      catch (error) { if (!error.lost || tries === 6) throw error; }
      await new Promise(done => setTimeout(done, 300 * tries));  // several containers may start at once
    }
  };
}

async function runInClassic({code, ...options}) {
  const kernel = IPython.notebook.kernel;
  // After any of these events no reply will come.
  const stops = ['restarting.Kernel', 'autorestarting.Kernel', 'dead.Kernel', 'killed.Kernel', 'killed.Session',
    'disconnected.Kernel', 'connection_dead.Kernel'].map(name => `kernel_${name}`).join(' ');
  if (!kernel?.is_connected()) throw Error('this notebook has no kernel at present (start one, then draw on).');
  let stopped;
  return new Promise((resolve, reject) => {
    stopped = () => reject(Error('the kernel stopped.'));
    kernel.events.on(stops, stopped);
    kernel.execute(code, {shell: {reply: message => resolve(message.content)}}, options);
  }).finally(() => kernel.events.off(stops, stopped));
}

// Today's front ends give a page no kernel object, so this uses the server's public API.
async function runOnServer({token, wsUrl}, base, path, content) {
  const get = path => fetch(new URL(path, base), {
    headers: token ? {Authorization: `token ${token}`} : {}, cache: 'no-store', signal: AbortSignal.timeout(10000),
  }).catch(({name}) => { throw (name === 'TimeoutError' ? Error : lost)('the Jupyter server does not answer.'); });
  const response = await get('api/sessions');
  if (!response.ok) throw Error(`the Jupyter server refused to list its kernels (${response.status}).`);
  const sessions = await response.json().catch(() => { throw Error('the Jupyter server asks you to log in again.'); });
  const session = sessions.find(session => session.path === path && session.type === 'notebook' && session.kernel);
  if (!session) throw Error(`no kernel runs for ${path} (start one, then draw on).`);

  // crypto.randomUUID() works on https pages only.
  const id = () => Array.from({length: 4}, () => Math.random().toString(16).slice(2, 10)).join('');
  const kernel = `api/kernels/${session.kernel.id}`;
  const url = new URL(`${kernel}/channels`, wsUrl ? new URL(wsUrl, base) : base);
  url.protocol = url.protocol.replace('http', 'ws');
  const date = new Date().toISOString();
  const header = {msg_id: id(), msg_type: 'execute_request', session: id(), username: '', version: '5.3', date};
  url.searchParams.set('session_id', header.session);
  if (token) url.searchParams.set('token', token);
  const socket = new WebSocket(url);
  let timer, watch, idle = 0;
  try {
    return await new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(Error('the kernel cannot be reached.')), 10000);
      socket.onclose = socket.onerror = () => reject(lost('the connection to the kernel broke.'));
      socket.onopen = () => {
        clearTimeout(timer);  // a running cell may take any time
        socket.send(JSON.stringify({header, parent_header: {}, metadata: {}, buffers: [], channel: 'shell', content}));
        // A kernel that stops or starts now may never answer, and one idle connection in a hundred gets no replies.
        watch = setInterval(async () => {
          try {
            const response = await get(kernel);
            idle = response.ok && (await response.json()).execution_state === 'idle' ? idle + 1 : 0;
            if (idle === 2) reject(lost('the kernel stopped.'));
            if (response.status === 404) reject(Error('the kernel stopped.'));
          } catch { /* if the server has gone, the socket closes */ }
        }, 700);
      };
      socket.onmessage = ({data}) => {
        if (typeof data !== 'string') return;  // a widget's binary message
        const {msg_type, parent_header, content} = JSON.parse(data), state = content?.execution_state;
        if (msg_type === 'execute_reply' && parent_header.msg_id === header.msg_id) resolve(content);
        if (msg_type === 'shutdown_reply' || ['restarting', 'autorestarting', 'dead'].includes(state)) {
          reject(Error('the kernel stopped.'));
        }
      };
    });
  } finally {
    clearTimeout(timer);
    clearInterval(watch);
    socket.close();
  }
}

// Return send(pixels, isNewest) for a pad. It sends the drawing to the kernel of the pad's notebook, after
// earlier drawings, and promises the endpoint's numbers or null. Only the newest drawing goes to the endpoint.
export function sender(pad) {
  let queue = Promise.resolve();
  return async (pixels, isNewest) => {
    let run;
    try { run = findKernel(pad); }  // now, as the address may change while earlier drawings are being sent
    catch (error) { throw Error(`Not sent: ${error.message}`); }
    const ask = async () => {
      const user_expressions = isNewest() && pixels.some(value => value > 0) ? {answer: PREDICT} : {};
      return run({code: assign(pixels), silent: true, store_history: false, user_expressions, allow_stdin: false})
        .catch(error => { throw Error(`Not sent: ${error.message}`); });
    };
    const reply = queue.then(async () => {
      let reply = await ask();
      for (let i = 0; i < 5 && reply.status === 'aborted'; i++) reply = await ask();  // a failed cell aborts it
      return reply;
    });
    queue = reply.catch(() => {});
    return readReply(await reply);
  };
}
