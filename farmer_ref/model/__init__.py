"""The paper. In reading order:

`farmer` puts it together on one page (Eq. 6); `tokens` (pixels, patches, bits/dim); `flow` (Eqs. 8-10); `prior` (Eqs. 5
and 14); `mixture` (Eqs. 7 and 11); `guidance` (Eq. 15, Alg. 1); `student` (Alg. 2); `coupling` (Table 4's baseline);
`transformer` (the network of them all); `config` (every setting of a model).

Supporting code, not in the paper: `checks` looks at images and labels, `precision` says what may be rounded,
`pixels` and `bases` are other coordinates of pixels and patches, `stepper` runs a transformer position by position,
`jacobi` inverts the flow in parallel, `tarflow` reads public weights, `pretrained` saves and loads, `export` writes
graphs for other runtimes.
"""
