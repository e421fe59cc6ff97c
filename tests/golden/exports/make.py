"""Made these exports, with TensorFlow 2.21 and Keras 3.15: `python make.py FOLDER`.

Of the SavedModels only the variables are kept; saved_model.pb was cut to two bytes.
"""

import sys
from pathlib import Path

import keras
import numpy as np

folder = Path(sys.argv[1])
layers = keras.layers
model = keras.Sequential(
    [
        keras.Input((4,)),
        layers.Dense(8, activation="relu"),
        layers.Dropout(0.1),
        layers.BatchNormalization(),
        layers.Dense(1),
    ]
)
for name in ("good", "nan"):
    if name == "nan":
        kernel, bias = model.layers[0].get_weights()
        kernel[1, 2], kernel[3, 3] = np.nan, np.inf
        model.layers[0].set_weights([kernel, bias])
    model.export(str(folder / name), verbose=False)
    model.save(folder / f"{name}.keras")
    model.save_weights(folder / f"{name}.weights.h5")
