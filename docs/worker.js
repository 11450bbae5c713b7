// A page opened from the disk may not start a worker. The search then runs in a hidden frame, which takes the
// worker's script and passes messages on.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      frame.addEventListener("load", () => {
        const scope = frame.contentWindow;
        scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = scope.document.createElement("script");
        script.src = url;
        script.addEventListener("load", () => {
          this.scope = scope;
          this.waiting.forEach((data) => this.postMessage(data));
        });
        scope.document.head.append(script);
      }, { once: true });
      document.addEventListener("DOMContentLoaded", () => document.body.append(frame), { once: true });
      if (document.readyState !== "loading") document.body.append(frame);
    }

    postMessage(data) {
      if (this.scope) this.scope.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
