"""The report as a reader has it: in a browser, on a desk and on a phone, without a network and without an error."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from verified import HOUR, START, write_analyses, write_run

from fengwu_ghr.config import VerifySection
from fengwu_ghr.progress import Silence
from fengwu_ghr.verify.drawing import DIVERGING, picture, shades, shore_path
from fengwu_ghr.verify.job import run_verification

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browsing = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="the browser's test needs Debian's chromium and chromium-driver"
)
DATES = [START + timedelta(days=3 * i) for i in range(7)]
"""Far enough apart, and enough of them, for a difference to be told from chance."""
LEADS = [timedelta(0), 6 * HOUR, 24 * HOUR]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    times = [START + 6 * HOUR * i for i in range(4 * 20)]
    write_analyses(folder / "analyses.zarr", times)
    write_run(folder / "run.zarr", DATES, LEADS, noise=0.3)
    write_run(folder / "worse.zarr", DATES, LEADS, scale=2, noise=0.3)
    (folder / "stations.csv").write_text(_stations())
    settings = VerifySection.model_validate(
        {
            "forecast": folder / "run.zarr",
            "truth": folder / "analyses.zarr",
            "baselines": {"worse": folder / "worse.zarr"},
            "stations": folder / "stations.csv",
            "thresholds": ("2t>=290",),
            "shown_hours": (24,),
            "output": folder / "scores",
        }
    )
    run_verification(settings, progress=Silence())
    return folder / "scores" / "index.html"


def _stations() -> str:
    lines = ["station,latitude,longitude,elevation,time,temperature"]
    for date in DATES:
        for name, latitude, longitude in (("Here", 10, 20), ("There", -30, 179.5), ("Pole", 90, 0)):
            when = date + timedelta(days=1)
            lines.append(f"{name},{latitude},{longitude},5,{when:%Y-%m-%dT%H:%M},285")
    return "\n".join(lines) + "\n"


def data_of(page: Path) -> dict:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    return json.loads(found[1].replace("<\\/", "</"))


def test_it_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!#|data:|\$\{)', text)
    assert "http://" not in text
    assert "https://" not in text


def test_the_numbers_are_the_scores(page: Path) -> None:
    data = data_of(page)
    assert data["sources"] == ["forecast", "worse", "persistence"]
    assert data["leads"] == [6, 24]
    rmse = np.array(data["scores"]["rmse"]["forecast"])[data["channels"].index("t850"), 0]
    assert rmse[1] == pytest.approx(1, abs=0.3)
    card = data["cards"]["worse"]
    assert card["dates"] == 7
    assert sum(card["counts"][0]) == 2 * len(data["channels"])
    assert {name for name, *_ in data["stations"]["maps"]["2t|24"]} <= {"Here", "There", "Pole"}


def test_pictures_are_png_of_the_field() -> None:
    field = np.array([[-2.0, 0.0, np.nan], [2.0, 9.0, -9.0]], np.float32)
    np.testing.assert_array_equal(shades(field, -2, 2), [[0, 127, 127], [255, 255, 0]])
    assert picture(shades(field, -2, 2), DIVERGING).startswith("data:image/png;base64,iVBOR")


def test_shores_stay_in_the_picture_and_do_not_cross_it() -> None:
    for centre in (0, 180):
        moves = re.findall(r"([ML])([\d.]+) ([\d.]+)", shore_path(centre=centre))
        x, y = (np.array([float(move[i]) for move in moves]) for i in (1, 2))
        assert ((x >= 0) & (x <= 360) & (y >= 0) & (y <= 180)).all()
        drawn = np.array([move[0] == "L" for move in moves])
        assert np.abs(np.diff(x))[drawn[1:]].max() < 180


@pytest.fixture
def browser(tmp_path: Path) -> Iterator["Chrome"]:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()
    driver.service.stop()


@browsing
@pytest.mark.parametrize(("width", "name"), [(1200, "desk"), (400, "phone")])
def test_a_reader_clicks_through_it(page: Path, browser: "Chrome", width: int, name: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.set_window_size(width, 900)
    browser.get(page.as_uri())
    assert "Verification of run" in browser.title
    for element in browser.find_elements(By.CSS_SELECTOR, "select"):
        select = Select(element)
        assert select.options, element.get_attribute("id")
        for option in [option.get_attribute("value") for option in select.options][:4]:
            select.select_by_value(option)
        select.select_by_index(0)
    for chart in ("curve", "spectra-power", "spectra-coherence", "event", "station-curve", "station-map"):
        assert browser.find_elements(By.CSS_SELECTOR, f"#{chart} svg"), chart
    assert len(browser.find_elements(By.CSS_SELECTOR, "#maps image")) >= 2
    assert browser.find_elements(By.CSS_SELECTOR, "#card td.better")
    regions = browser.find_elements(By.CSS_SELECTOR, "#card-regions tbody tr")
    assert len(regions) == len(browser.find_elements(By.CSS_SELECTOR, "#card-region option"))
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        link.click()
    body = browser.execute_script("return document.documentElement.scrollWidth")
    assert body <= browser.execute_script("return window.innerWidth"), "nothing sticks out to the side"
    time.sleep(0.2)
    errors = [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]
    assert errors == []
    shots = page.parent / "screenshots"
    shots.mkdir(exist_ok=True)
    browser.set_window_size(
        width, int(browser.execute_script("return document.documentElement.scrollHeight")) + 100
    )
    assert browser.save_screenshot(str(shots / f"{name}.png"))
    assert (shots / f"{name}.png").stat().st_size > 30_000
