package pybind

import (
	"unsafe"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
)

// array is a tensor of the Python caller, who keeps it alive and in place until
// the job that got it has ended.
type array struct {
	Address int64   `json:"address"`
	Dtype   string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Strides []int64 `json:"strides"` // elements
	Device  string  `json:"device"`  // "": cpu
}

// tensor borrows the array; nil stays nil. name is the argument's.
func (a *array) tensor(name string) (*tensor.Tensor, error) {
	if a == nil {
		return nil, nil
	}
	dtype, err := tensor.ParseDtype(a.Dtype)
	if err != nil {
		return nil, core.Invalid("", "%s: %v", name, err)
	}
	device := tensor.CPU
	if a.Device != "" {
		device = tensor.Device(a.Device)
	}
	// The address is the caller's memory, which Go's collector does not know.
	t, err := tensor.Borrow(*(*unsafe.Pointer)(unsafe.Pointer(&a.Address)), dtype, a.Shape, a.Strides, device)
	if err != nil {
		return nil, core.Invalid("", "%s: %v", name, err)
	}
	return t, nil
}

// tensors borrows several arrays at once.
func tensors(named ...namedArray) error {
	for _, n := range named {
		t, err := n.array.tensor(n.name)
		if err != nil {
			return err
		}
		*n.into = t
	}
	return nil
}

type namedArray struct {
	name  string
	array *array
	into  **tensor.Tensor
}
