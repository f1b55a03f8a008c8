// This module is the front end of DigitPad (widget.py): it shows the pad and sends drawings to the widget.
export default {render({model, el}) {
  const box = document.createElement('div');
  box.append(document.createRange().createContextualFragment(model.get('_html')));
  document.body.append(box);  // its script searches the document, which excludes marimo's shadow tree
  el.append(box);
  const ask = data => new Promise((resolve, reject) => {
    const id = Math.random();
    const hear = message => {
      if (message.id !== id) return;
      stop();
      message.error ? reject(Error(message.error)) : resolve(message.scores);
    };
    const stop = () => { clearTimeout(timer); model.off('msg:custom', hear); };
    const fail = reason => { stop(); reject(Error(`${reason} If it was restarted, run this cell again.`)); };
    const timer = setTimeout(() => fail('The kernel has not answered for two minutes.'), 120000);
    model.on('msg:custom', hear);
    try {
      model.set('data', data);  // runs marimo's cells that use pad.data
      model.save_changes();
      model.send({id, data});
    } catch { fail('Not sent: the kernel does not have this widget.'); }
  });
  let newest = 0, queue = Promise.resolve();
  el.addEventListener('digit', event => {
    event.preventDefault();
    const mine = ++newest, {data, respondWith} = event.detail;
    const answer = queue.then(() => mine === newest ? ask(data) : null);
    queue = answer.catch(() => {});
    respondWith(answer, "Sent to this widget's `data`.");
  });
}};
