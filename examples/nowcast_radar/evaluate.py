"""Score the network and persistence on the frames from 05:30 on, at every lead time, streaming with carried state.

    python examples/nowcast_radar/evaluate.py --radar DIR

The stream begins at 05:30 from zero state (nothing of the training night is carried over) and every one of its
forecasts counts. MAE is in mm/h over the pixels with data; CSI = hits / (hits + misses + false alarms) of 1 mm/h.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import SPLIT, live_square, rain, read, to_network, to_rate

from edgelstm import nn

HERE = Path(__file__).parent
RAINY = 1.0  # mm/h


def scores(forecast: np.ndarray, truth: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """(MAE, CSI) of mm/h arrays over the pixels where ``known``."""
    said, was = (forecast >= RAINY) & known, (truth >= RAINY) & known
    return float(np.abs(forecast - truth)[known].mean()), float((said & was).sum() / (said | was).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--radar", type=Path, required=True, help="folder of KNMI .h5 composites")
    parser.add_argument("--weights", type=Path, default=HERE / "model.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    counts, times = read(options.radar)
    rate, known = rain(live_square(counts[[time >= SPLIT for time in times]]))

    model = nn.load(options.weights)
    states = model.initial_states()
    forecasts = []
    with torch.inference_mode():
        for frame in to_network(rate):
            forecast, states = model(torch.from_numpy(frame)[None, None], *states)
            forecasts.append(to_rate(forecast[0, :, 0].numpy()))
    ahead = np.stack(forecasts)

    horizon = ahead.shape[1]
    origins = len(rate) - horizon
    print(
        f"{origins} forecasts from {SPLIT} UTC on; {known.mean():.0%} of the square's pixels have data; ",
        end="",
    )
    print(f"it rains {RAINY:g} mm/h or more on {(rate >= RAINY)[known].mean():.1%} of them\n")
    print("| minutes ahead | MAE model | MAE persistence | CSI model | CSI persistence |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    table = []
    for lead in range(1, horizon + 1):
        truth = rate[lead : lead + origins], known[lead : lead + origins]
        model_mae, model_csi = scores(ahead[:origins, lead - 1], *truth)
        same_mae, same_csi = scores(rate[:origins], *truth)
        table.append((model_mae, same_mae, model_csi, same_csi))
        print(f"| {5 * lead} | {model_mae:.4f} | {same_mae:.4f} | {model_csi:.3f} | {same_csi:.3f} |")
    mean = np.mean(table, axis=0)
    print(f"| mean | {mean[0]:.4f} | {mean[1]:.4f} | {mean[2]:.3f} | {mean[3]:.3f} |")


if __name__ == "__main__":
    main()
