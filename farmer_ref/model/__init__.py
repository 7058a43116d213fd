"""The paper. In reading order:

`farmer` puts it together on one page (Eq. 6); `tokens` (pixels, patches, bits/dim); `flow` (Eqs. 8-10); `prior` and
`mixture` (Eqs. 5, 7, 11, 14); `guidance` (Eq. 15, Alg. 1); `student` (Alg. 2); `coupling` (Table 4's baseline);
`transformer` (the network of them all); `config` (every setting of a model).

Beside the paper: `stepper` runs a transformer position by position, `jacobi` inverts the flow
in parallel, `tarflow` reads public weights, `pretrained` saves and loads, `export` writes graphs for other runtimes.
"""
