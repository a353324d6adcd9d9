"""The page in a real browser: upload, comparison, errors, light and dark, wide and narrow."""

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).textContent.trim()")


def test_comparing_an_image(serve, model, upload_of, browser, tmp_path):
    path = tmp_path / "<i>street.png"
    path.write_bytes(upload_of(8, (60, 90)))
    with serve(model) as url:
        browser.open(url)
        assert browser.evaluate("document.getElementById('result').hidden")
        browser.choose_file("#file", path)
        browser.wait_for("!document.getElementById('result').hidden")
        browser.wait_for("document.getElementById('right').complete")
        assert text(browser, "#message") == "<i>street.png: 90 × 60 pixels"
        assert browser.evaluate("document.querySelectorAll('i').length") == 0
        # A hostile class name is text, too.
        assert text(browser, "#classes td") == "<b>hostile</b>"
        shares = "[...document.querySelectorAll('#classes td')].map((cell) => cell.textContent)"
        assert browser.evaluate(shares) == [
            *("<b>hostile</b>", "50.0 %", "100.0 %"),
            *("class 0", "50.0 %", "0.0 %"),
        ]
        assert "changed 50.0 % of the pixels" in text(browser, "#changed")
        # The slider moves the border, and the choices change the pictures.
        cut = "getComputedStyle(document.getElementById('right')).clipPath"
        assert "50%" in browser.evaluate(cut)
        browser.evaluate(
            "slider = document.getElementById('slider'); slider.value = 20;"
            "slider.dispatchEvent(new Event('input'))"
        )
        assert "20%" in browser.evaluate(cut)
        for name in ("image", "coarse", "refined", "changed"):
            browser.evaluate(
                f"choice = document.getElementById('leftChoice'); choice.value = '{name}';"
                "choice.dispatchEvent(new Event('change'))"
            )
            assert browser.evaluate(f"document.getElementById('left').src === pictures.{name}")
        sizes = "[...document.querySelectorAll('#compare img')].map((i) => i.naturalWidth)"
        assert browser.evaluate(sizes) == [90, 90]
        assert browser.errors() == []
        loaded = [x for x in browser.requested() if not x.startswith(("data:", "about:"))]
        assert all(address.startswith(url) for address in loaded), loaded


def test_a_broken_file_is_explained_and_the_next_one_works(
    serve, model, upload_of, browser, tmp_path
):
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "good.png").write_bytes(upload_of(1))
    with serve(model) as url:
        browser.open(url)
        browser.choose_file("#file", tmp_path / "broken.png")
        browser.wait_for("document.getElementById('message').className === 'error'")
        assert "not a readable image" in text(browser, "#message")
        browser.choose_file("#file", tmp_path / "good.png")
        browser.wait_for("!document.getElementById('result').hidden")
        assert browser.evaluate("document.getElementById('message').className") == ""


def test_a_server_that_is_gone_is_said(serve, model, upload_of, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(upload_of(1))
    with serve(model) as url:
        browser.open(url)
    browser.choose_file("#file", tmp_path / "a.png")
    browser.wait_for("document.getElementById('message').className === 'error'")
    assert text(browser, "#message") == "The server does not answer."


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_and_text_can_be_read(serve, model, browser, tmp_path, width):
    picture = tmp_path / f"{'long_name_' * 12}.png"
    Image.fromarray(np.zeros((300, 900, 3), np.uint8)).save(picture)
    browser.resize(width, 800)
    with serve(model) as url:
        browser.open(url)
        browser.choose_file("#file", picture)
        browser.wait_for("!document.getElementById('result').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds = set()
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            style = "getComputedStyle(document.body)"
            front, back = (
                browser.evaluate(f"{style}.{name}.match(/\\d+/g).slice(0, 3).map(Number)")
                for name in ("color", "backgroundColor")
            )
            assert abs(np.mean(front) - np.mean(back)) > 150
            backgrounds.add(tuple(back))
        assert len(backgrounds) == 2
