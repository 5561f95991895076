package tensor

import "testing"

func TestDeviceNames(t *testing.T) {
	for _, c := range []struct {
		device  Device
		kind    string
		ordinal int // -1: none
	}{
		{CPU, "cpu", -1}, {"cuda:0", CUDA, 0}, {CUDADevice(7), CUDA, 7}, {"cuda", CUDA, -1}, {"cuda:-1", CUDA, -1}, {"cuda:x", CUDA, -1},
	} {
		ordinal, err := c.device.Ordinal()
		if err != nil {
			ordinal = -1
		}
		if c.device.Kind() != c.kind || ordinal != c.ordinal {
			t.Errorf("%s: %s, %d, want %s, %d", c.device, c.device.Kind(), ordinal, c.kind, c.ordinal)
		}
	}
}
