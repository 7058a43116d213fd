;; The linear layer of farmer.js: out[t,o] = b[o] + sum_i x[t,i] W[o,i], in float32 with SIMD.
;; Addresses are in bytes; I is a multiple of 4, O of 2 (farmer.js pads with zeros). Two outputs at a time.
;; kernel.wasm is this file's bytes, committed so that nobody who builds the book needs a compiler:
;;   npx -p wabt wat2wasm book/_static/live/kernel.wat -o book/_static/live/kernel.wasm
(module
  (memory (export "mem") 1 2048)
  (func (export "linear") (param $x i32) (param $T i32) (param $W i32) (param $b i32) (param $I i32) (param $O i32) (param $out i32)
    (local $t i32) (local $o i32) (local $p i32) (local $q i32) (local $q2 i32) (local $end i32) (local $row i32)
    (local $a v128) (local $c v128) (local $v v128)
    (local.set $row (i32.shl (local.get $I) (i32.const 2)))
    (block $done (loop $tl
      (br_if $done (i32.ge_u (local.get $t) (local.get $T)))
      (local.set $o (i32.const 0))
      (block $od (loop $ol
        (br_if $od (i32.ge_u (local.get $o) (local.get $O)))
        (local.set $a (v128.const f32x4 0 0 0 0)) (local.set $c (v128.const f32x4 0 0 0 0))
        (local.set $p (i32.add (local.get $x) (i32.mul (local.get $t) (local.get $row))))
        (local.set $end (i32.add (local.get $p) (local.get $row)))
        (local.set $q (i32.add (local.get $W) (i32.mul (local.get $o) (local.get $row))))
        (local.set $q2 (i32.add (local.get $q) (local.get $row)))
        (loop $il
          (local.set $v (v128.load (local.get $p)))
          (local.set $a (f32x4.add (local.get $a) (f32x4.mul (local.get $v) (v128.load (local.get $q)))))
          (local.set $c (f32x4.add (local.get $c) (f32x4.mul (local.get $v) (v128.load (local.get $q2)))))
          (local.set $p (i32.add (local.get $p) (i32.const 16)))
          (local.set $q (i32.add (local.get $q) (i32.const 16)))
          (local.set $q2 (i32.add (local.get $q2) (i32.const 16)))
          (br_if $il (i32.lt_u (local.get $p) (local.get $end))))
        (f32.store (i32.add (local.get $out) (i32.shl (i32.add (i32.mul (local.get $t) (local.get $O)) (local.get $o)) (i32.const 2)))
          (f32.add (f32.load (i32.add (local.get $b) (i32.shl (local.get $o) (i32.const 2))))
            (f32.add (f32.add (f32x4.extract_lane 0 (local.get $a)) (f32x4.extract_lane 1 (local.get $a))) (f32.add (f32x4.extract_lane 2 (local.get $a)) (f32x4.extract_lane 3 (local.get $a))))))
        (f32.store (i32.add (local.get $out) (i32.shl (i32.add (i32.add (i32.mul (local.get $t) (local.get $O)) (local.get $o)) (i32.const 1)) (i32.const 2)))
          (f32.add (f32.load (i32.add (local.get $b) (i32.shl (i32.add (local.get $o) (i32.const 1)) (i32.const 2))))
            (f32.add (f32.add (f32x4.extract_lane 0 (local.get $c)) (f32x4.extract_lane 1 (local.get $c))) (f32.add (f32x4.extract_lane 2 (local.get $c)) (f32x4.extract_lane 3 (local.get $c))))))
        (local.set $o (i32.add (local.get $o) (i32.const 2)))
        (br $ol)))
      (local.set $t (i32.add (local.get $t) (i32.const 1)))
      (br $tl)))))
