"""The explorables in a real JupyterLab: they open, the keyboard moves them, nothing complains."""

import base64

from ssmcourse.explore import MatrixView
from ssmcourse.explore.figures import memory
from ssmcourse.explore.still import still_png

CURVES, MATRIX = 0, 1  # the pictures of explore.memory(), in the order of the page

# Contrast (WCAG) between the page and the most different pixel of each picture.
CONTRAST = """() => [...document.querySelectorAll('.ssm-view canvas')].map((c) => {
  const light = (r, g, b) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const back = getComputedStyle(document.querySelector('.ssm-explorable')).backgroundColor.match(/\\d+/g).map(Number);
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  const page = light(...back);
  let best = 1;
  for (let k = 0; k < d.length; k += 4) {
    const share = d[k + 3] / 255, here = light(...[0, 1, 2].map((c) => d[k + c] * share + back[c] * (1 - share)));
    best = Math.max(best, (Math.max(here, page) + 0.05) / (Math.min(here, page) + 0.05));
  }
  return [page, best];
})"""


def ready(lab, pictures):
    """Run the notebook and wait until as many pictures are painted."""
    lab.run_all()
    lab.page.wait_for_function(
        "n => document.querySelectorAll('.ssm-view canvas[aria-label]').length === n", arg=pictures
    )


def test_memory_answers_to_the_keyboard_in_both_themes(lab):
    cells = ("from ssmcourse import explore", "explore.memory()", "'a cell below'")
    lab.open(lab.server.write("memory.ipynb", *cells))
    ready(lab, 2)
    before = lab.fingerprints()
    lab.press(lab.slider("A"), "ArrowLeft", 3)
    lab.wait_change(before, MATRIX)
    lab.wait_change(before, CURVES)
    lab.page.locator(".ssm-say", has_text="a = exp(A·Δ) = 0.795").wait_for()

    canvas = lab.page.locator(".ssm-view canvas").nth(MATRIX)
    before = lab.fingerprints()
    lab.press(canvas, "ArrowDown", 2)
    lab.wait_change(before, CURVES)  # by way of Python: the bars of the row under the cross-hair
    lab.page.locator(".ssm-readout", has_text="M[17, 16] = 0.794534").wait_for()
    active = (
        "[...document.querySelectorAll('.jp-Cell')].findIndex(c => c.classList.contains('jp-mod-active'))"
    )
    before = lab.page.evaluate(active)
    lab.press(canvas, "ArrowUp")
    lab.page.locator(".ssm-readout", has_text="M[16, 16] = 1").wait_for()
    assert lab.page.evaluate(active) == before  # the notebook's own arrow keys kept out of it

    before = lab.fingerprints()
    lab.press(lab.page.get_by_label("let Δ depend on the input"), " ")
    lab.wait_change(before, MATRIX)

    for theme, dark in (("JupyterLab Dark", True), ("JupyterLab Light", False)):
        lab.theme(theme)
        for page, contrast in lab.page.evaluate(CONTRAST):
            assert (page < 0.2) == dark
            assert contrast > 7
    assert lab.errors == []


def test_hippo_moves_by_slider_marker_button_and_pen(lab):
    lab.open(lab.server.write("hippo.ipynb", "from ssmcourse import explore\nexplore.hippo()"))
    ready(lab, 1)
    say = lab.page.locator(".ssm-say")
    for target, key, text in (
        (lab.slider("t"), "ArrowLeft", "for 399 samples"),
        (lab.slider("N"), "ArrowRight", "29 numbers"),
        (lab.page.locator(".ssm-view canvas"), "ArrowLeft", "for 398 samples"),
    ):
        before = lab.fingerprints()
        lab.press(target, key)
        lab.wait_change(before)
        say.filter(has_text=text).wait_for()
    lab.page.get_by_role("button", name="×2").click()
    say.filter(has_text="the coefficients moved by: LegS").wait_for()
    lab.page.get_by_role("button", name="LegT").click()
    say.filter(has_text="in the window of 128 samples").wait_for()

    before = lab.fingerprints()
    lab.page.get_by_label("signal", exact=True).select_option(label="draw one")
    lab.page.locator(".ssm-readout", has_text="Draw a signal").wait_for()
    box = lab.page.locator(".ssm-view canvas").bounding_box()
    lab.page.mouse.move(box["x"] + 120, box["y"] + 60)
    lab.page.mouse.down()
    lab.page.mouse.move(box["x"] + 420, box["y"] + 150, steps=8)
    lab.page.mouse.up()
    lab.wait_change(before)
    assert lab.errors == []


def test_a_fresh_clone_shows_the_still_picture(lab):
    """An untrusted notebook with a widget of a kernel that is long gone: the PNG in the same bundle."""
    view = MatrixView([[1.0, 0.0], [0.5, 1.0]])
    stored = {
        "image/png": still_png(*memory.pictures(memory.arrays(memory.Memory()))),
        "text/plain": repr(view),
    }
    data = stored | {"image/png": base64.b64encode(stored["image/png"]).decode()}
    gone = {"version_major": 2, "version_minor": 0, "model_id": "0" * 32}
    outputs = [
        {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": bundle}
        for bundle in (data, data | {"application/vnd.jupyter.widget-view+json": gone})
    ]
    name = lab.server.write(
        "clone.ipynb", "explore.memory()", "view", outputs={0: outputs[:1], 1: outputs[1:]}
    )
    lab.open(name)
    images = lab.page.locator(".jp-RenderedImage img")
    images.nth(1).wait_for()
    widths = images.evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))")
    assert min(widths) > 600
    assert lab.errors == []
