"""Times the operators beside eager PyTorch, torch.compile and a copy of the same bytes, all in one run.

Every provider of a case gets the same inputs, and its result is compared with the reference before it is timed.
All follow one allocation rule:

* In place, each leaves its result in x: the tidy and strong formulas with PyTorch's in-place operators, which
  is faster than their usual form and a copy; the naive one and what torch.compile is given with ``x.copy_``.
* In every other direction each, the copy too, returns fresh tensors, allocated inside the timed call.

The calls go over a pool of inputs. What a call uses up (x in place, the graph of a backward) is made anew
before each pass over the pool, outside the timed region: soft-thresholding one buffer again and again would
soon time zeros. Cold inputs on the CPU: every contender has a pool of its own, all of them together are larger than
the last-level cache, and the contenders take turns, a call at a time. Hot ones: the pool is as large as a cache, and a
contender makes many calls in a row. On CUDA the pool is larger than three times the L2.
"""
