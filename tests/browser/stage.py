"""A bare page that runs a widget's JavaScript against a model kept in the page: no server, no kernel."""

import base64

from playwright.sync_api import Browser

LIGHT = {
    "--jp-layout-color0": "#fff",
    "--jp-ui-font-color1": "rgba(0,0,0,.87)",
    "--jp-ui-font-color2": "#757575",
}
DARK = {"--jp-layout-color0": "#111", "--jp-ui-font-color1": "#fff", "--jp-ui-font-color2": "#bdbdbd"}

PAGE = """<!doctype html><body data-jp-theme-light="true" style="margin:0; height:3000px">
<style id="theme"></style><style>%s</style><div id="host" style="padding:10px"></div></body>"""

MODEL = """(state) => {
  const traits = {}, listeners = {}, sent = [];
  const decode = (v) => v && v.bytes !== undefined
    ? new DataView(Uint8Array.from(atob(v.bytes), (c) => c.charCodeAt(0)).buffer) : v;
  const set = (name, value) => { traits[name] = value; (listeners['change:' + name] || []).forEach((f) => f()); };
  for (const [name, value] of Object.entries(state)) traits[name] = decode(value);
  window.sent = sent;
  window.fromPython = (change) => { for (const [k, v] of Object.entries(change)) set(k, decode(v)); };
  window.model = {
    get: (name) => traits[name],
    set: (name, value) => { set(name, value); sent.push([name, value]); },
    save_changes: () => {},
    on: (event, f) => { (listeners[event] ||= []).push(f); },
    off: (event, f) => { listeners[event] = (listeners[event] || []).filter((g) => g !== f); },
  };
}"""


def plain(traits: dict) -> dict:
    """Trait values as JSON; bytes as {"bytes": base64}."""
    return {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value
        for name, value in traits.items()
    }


class Stage:
    """A widget on a page of its own."""

    def __init__(
        self, chrome: Browser, widget, *, width: int = 620, dark: bool = False, ratio: float = 1
    ) -> None:
        self.context = chrome.new_context(viewport={"width": width, "height": 700}, device_scale_factor=ratio)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_content(PAGE % widget._css)
        self.theme(dark)
        skip = ("_esm", "_css", "layout", "tooltip", "tabbable")
        traits = {k: v for k, v in widget.get_state().items() if k not in skip and not k.startswith("_model")}
        self.page.evaluate(MODEL, plain(traits))
        start = "window.stop = render({ model: window.model, el: document.getElementById('host') });"
        self.page.add_script_tag(
            type="module", content=widget._esm.replace("export default { render };", start)
        )
        self.page.wait_for_function(
            "window.stop && document.querySelector('canvas')?.hasAttribute('aria-label')"
        )
        self.canvas = self.page.locator("canvas")
        self.settle()

    def theme(self, dark: bool) -> None:
        style = "body{" + "".join(f"{k}:{v};" for k, v in (DARK if dark else LIGHT).items()) + "}"
        style += "body{background:var(--jp-layout-color0)}"
        self.page.evaluate("s => { document.getElementById('theme').textContent = s }", style)
        self.page.evaluate("l => { document.body.dataset.jpThemeLight = l }", str(not dark).lower())

    def settle(self) -> None:
        """Two animation frames and the sender's pause."""
        self.page.evaluate("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
        self.page.wait_for_timeout(60)

    def keys(self, *keys: str) -> None:
        self.canvas.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def change(self, **traits) -> None:
        """As when Python sets traits."""
        self.page.evaluate("c => window.fromPython(c)", plain(traits))
        self.settle()

    def get(self, trait: str):
        return self.page.evaluate("n => window.model.get(n)", trait)

    def text(self) -> str:
        return self.page.locator(".ssm-readout").inner_text()

    def picture(self) -> str:
        return self.page.evaluate("document.querySelector('canvas').toDataURL()")

    def pixel(self, x: float, y: float) -> list[int]:
        """The colour at CSS pixel (x, y) of the canvas."""
        return self.page.evaluate(
            """([x, y]) => { const c = document.querySelector('canvas'), r = devicePixelRatio;
            return [...c.getContext('2d').getImageData(Math.round(x * r), Math.round(y * r), 1, 1).data] }""",
            [x, y],
        )

    def close(self) -> None:
        assert not self.errors, self.errors
        self.context.close()
