package pybind

import (
	"encoding/json"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/core/tensor"
	"github.com/trivium-ml/trivium/core/tensor/cbridge"
)

// exports are results that Python has not taken yet.
var exports = newHandles[*tensor.Tensor]("result")

// imports are tensors of other libraries that Python holds through Go.
var imports = newHandles[*tensor.Tensor]("tensor")

// imported is a tensor of another library: a handle to forget, and the array.
type imported struct {
	ID int64 `json:"id"`
	array
}

// TakeTensor exports a result into the two Arrow structures at these addresses and
// drops it here. It gives the array as JSON; schema 0 leaves the second structure out.
func TakeTensor(result int64, array int64, schema int64) (description string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	t, err := exports.take(result)
	if err != nil {
		return "", err
	}
	defer t.Release()
	if err := cbridge.Export(t, uintptr(array), uintptr(schema)); err != nil {
		return "", err
	}
	text, err := json.Marshal(describe(t))
	return string(text), err
}

// ImportTensor takes over what the two Arrow structures hold, without a copy, until
// ForgetTensor. It gives the array and its id as JSON.
func ImportTensor(array int64, schema int64) (description string, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return "", err
	}
	t, err := cbridge.Import(uintptr(array), uintptr(schema))
	if err != nil {
		return "", core.Invalid("", "%v", err)
	}
	text, err := json.Marshal(imported{imports.add(t), describe(t)})
	return string(text), err
}

// ForgetTensor gives an imported tensor back to its owner.
func ForgetTensor(tensor int64) (id int64, err error) {
	defer guard(&err)
	if err := refuseForked(); err != nil {
		return 0, err
	}
	t, err := imports.take(tensor)
	if err != nil {
		return 0, err
	}
	t.Release()
	return tensor, nil
}

func describe(t *tensor.Tensor) array {
	return array{Address: int64(uintptr(t.Pointer())), Dtype: t.Dtype().String(), Shape: t.Shape(), Strides: t.Strides(), Device: string(t.Device())}
}
