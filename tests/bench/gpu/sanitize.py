"""Small cases of every kernel, to run under compute-sanitizer."""
import check_attend
import check_index
import check_selectors
import driver


def main():
    ok = True
    for kind in (driver.Attend, driver.AttendPlain):
        kernels = {}
        for c in [c for c in check_attend.cases(40) if c["n"] <= 420][:7]:
            err, rounding, _, finite = check_attend.run_case(c, kernels, kind)
            ok &= finite and err <= 1.75 * max(rounding, 2e-4)
    kernels = {}
    # The second rotation copied, and made by the kernel: one and two border tiles for 64 rows, and, masked, none.
    for seed in range(3):
        for masked in (False, True):
            err, rounding, _, finite = check_attend.run_case(
                dict(n=700 if masked else 300, m=700 if masked else 300, offset=0, batch=1, hkv=1, g=2, d=128, fp16=False, masked=masked,
                     density=.4, layout="bhnd", extra="bands", gain=1.0, seed=seed, band=100), kernels)
            ok &= finite and err <= 1.75 * max(rounding, 2e-4)
    kernels = {}
    for c in [c for c in check_attend.decode_cases(60) if c["m"] <= 700][:6]:
        err, rounding, _, finite = check_attend.run_case(c, kernels, driver.Decode)
        ok &= finite and err <= 1.75 * max(rounding, 2e-4)
    ok &= check_attend.batched(100, kernels, driver.Decode) < 4e-3
    ok &= max(check_attend.batched(s, {}) for s in (101, 102)) < 4e-3
    ok &= check_attend.probe(200, {}, {}) < 2e-3 and check_attend.rotation(300, {}) < 8e-3
    ok &= check_selectors.random_cases(4, longest=500)
    ok &= check_index.random_cases(1)
    print("sanitize:", "passed" if ok else "FAILED")
    return ok


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
