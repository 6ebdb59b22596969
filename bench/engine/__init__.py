"""One training engine for every method.

`step.py` is one optimization step, which training, the cost probe, the FLOP counter and `speed` all take. `loop.py` is the loop
around it; `train.py` takes cells and writes records.

Of mmengine the engine uses the Registry (of methods, models, hooks), Hook (its own, and those of users by `--hook`) and the
Visualizer with its backends (`--visualize`). It does not use mmengine's Runner, for three reasons:

* the Runner reads every loss back in every step, which waits for the device, and keeps a history that grows with every step;
* its checkpoints neither load under torch's safe defaults nor resume exactly;
* of what it does to models, devices, logs and configurations, nearly all had to be switched off here.

A hook gets the loop as `runner`, with `epoch`, `max_epochs`, `iter`, `max_iters`, `model`, `history`, `terms` and `seconds`.
What it adds to a row of `history` becomes a column of the curves: `gradients.py` is an example.
"""
