package cuda

import (
	"embed"
	"slices"
	"sort"
	"strconv"
	"strings"
)

//go:embed src/*.cu src/*.cuh src/*.h
var sources embed.FS

// Kernel is one source file compiled one way.
type Kernel struct {
	Source  string   // file in src
	Defines []string // sorted
	Least   int      // least compute capability, times ten
	Exact   bool     // runs on Least alone (its a-features)
}

// For says whether the kernel can be compiled for an architecture such as "sm_90a".
func (k Kernel) For(arch string) bool {
	capability, accelerated, err := parseArch(arch)
	if err != nil {
		return false
	}
	if k.Exact {
		return capability == k.Least && accelerated
	}
	return capability >= k.Least
}

func (k Kernel) String() string {
	return k.Source + " " + strings.Join(k.Defines, " ")
}

// parseArch reads "sm_90a" as 90, true.
func parseArch(arch string) (capability int, accelerated bool, err error) {
	digits := strings.TrimPrefix(arch, "sm_")
	accelerated = strings.HasSuffix(digits, "a")
	capability, err = strconv.Atoi(strings.TrimSuffix(digits, "a"))
	return capability, accelerated, err
}

// Feature is what a variant of the attention kernel adds to plain causal attention.
type Feature string

// The features; a plain call pays for none of them.
const (
	Bands   Feature = "BANDS"   // a second rotation of q beyond a distance
	Window  Feature = "WINDOW"  // keys at a distance drop out
	Softcap Feature = "SOFTCAP" // scores pass through softcap*tanh(x/softcap)
	Sinks   Feature = "SINKS"   // a logit for each head joins the sum
	Probing Feature = "PROBE"   // the decode kernel measures coverage instead
)

// compiledDim is the head_dim of the kernel that takes headDim: the columns
// that are missing are read as zeros.
func compiledDim(headDim int) int {
	if headDim <= 64 {
		return 64
	}
	return 128
}

func attendKernel(source string, capability int, exact bool, headDim int, half bool, features ...Feature) Kernel {
	defines := []string{"HEAD_DIM=" + strconv.Itoa(compiledDim(headDim))}
	if half {
		defines = append(defines, "FP16")
	}
	for _, f := range features {
		defines = append(defines, string(f))
	}
	sort.Strings(defines)
	return Kernel{Source: source, Defines: slices.Compact(defines), Least: capability, Exact: exact}
}

// Kernels lists the kernels worth compiling ahead and in tests: each feature
// alone, a local window with two rotations, turns of all columns, and all
// features at once.
func Kernels() []Kernel {
	var all []Kernel
	features := [][]Feature{nil, {Bands}, {Window}, {Softcap}, {Sinks}, {Bands, Window}, {Bands, Window, Softcap, Sinks}}
	for _, headDim := range []int{64, 128} {
		for _, half := range []bool{false, true} {
			for _, f := range features {
				all = append(all, attendKernel("attend_sm90.cu", 90, true, headDim, half, f...),
					attendKernel("attend_sm80.cu", 80, false, headDim, half, f...))
			}
			for _, turn := range []Turn{{Angles: make([]float64, headDim/2)}, {Interleaved: true}} {
				all = append(all, attendKernel("attend_sm90.cu", 90, true, headDim, half, Bands, turn.define()))
			}
			for _, f := range [][]Feature{nil, {Bands}, {Bands, Window, Softcap, Sinks}} {
				all = append(all, attendKernel("decode.cu", 80, false, headDim, half, f...),
					attendKernel("decode.cu", 80, false, headDim, half, append(slices.Clone(f), Probing)...))
			}
			all = append(all, scoresKernel(headDim, half), scoresKernel(headDim, half, Bands), rowMassKernel(headDim, half))
		}
	}
	for _, half := range []bool{false, true} {
		all = append(all, attendKernel("flashprefill.cu", 80, false, 64, half), attendKernel("flashprefill.cu", 80, false, 128, half),
			attendKernel("flashprefill_sm90.cu", 90, true, 64, half), attendKernel("flashprefill_sm90.cu", 90, true, 128, half),
			strideKernel(8, half, false), strideKernel(16, half, false), strideKernel(8, half, true), strideKernel(16, half, true))
	}
	all = append(all, Kernel{Source: "table.cu", Least: 80}, Kernel{Source: "select_mask.cu", Least: 80}, indexKernel("rotate.cu", ""), indexKernel("rotate.cu", "FP16"), Kernel{Source: "clear.cu", Least: 80})
	for _, element := range []string{"", "FP16", "FLOAT_INPUT"} {
		all = append(all, indexKernel("flexindex_select.cu", element), indexKernel("flexindex_scores_plain.cu", element))
	}
	return all
}

func scoresKernel(headDim int, half bool, features ...Feature) Kernel {
	return attendKernel("flexindex_scores_sm90.cu", 90, true, headDim, half, features...)
}

func strideKernel(stride int, half, hopper bool) Kernel {
	k := indexKernel("xattention.cu", element(half))
	if hopper {
		k.Source, k.Least, k.Exact = "xattention_sm90.cu", 90, true
	}
	k.Defines = append(k.Defines, "STRIDE="+strconv.Itoa(stride))
	return k
}

func indexKernel(source, element string) Kernel {
	k := Kernel{Source: source, Least: 80}
	if element != "" {
		k.Defines = []string{element}
	}
	return k
}
