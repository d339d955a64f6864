"The picture of the landing page, docs/pictures/result.png: `python docs/picture.py` (a minute)."

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from diffspect_nb.metrics import psnr
from diffspect_nb.mlem import mlem
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.study import Study, sample_folder, thin
from diffspect_nb.viewer import focus_of

OUT = Path(__file__).resolve().parent / "pictures" / "result.png"


def main() -> None:
    study = Study.load(sample_folder())
    low = thin(study, 0.05, np.random.default_rng(0))
    shown = {
        "MLEM, 50 iterations": mlem(low.measurement(), 50) / low.count_fraction,
        "anchored walk": reconstruct(low).image,
        "truth": study.truth,
    }
    (z, y, x), (least, most) = focus_of(study)
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), constrained_layout=True, facecolor="black")
    for ax, (name, image) in zip(axes, shown.items(), strict=True):
        ax.imshow(image[z, y - 17 : y + 18, x - 21 : x + 22], cmap="inferno", vmin=least, vmax=most)
        score = "" if name == "truth" else f"\n{psnr(image, study.truth, study.heart):.1f} dB"
        ax.set_title(name + score, color="white", fontsize=12)
        ax.set_axis_off()
    fig.savefig(OUT, dpi=110, facecolor="black")


if __name__ == "__main__":
    main()
