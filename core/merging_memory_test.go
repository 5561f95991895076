package core

import "testing"

func TestOutputsThatCrowdTheMemory(t *testing.T) {
	available := availableMemory()
	if available <= 0 {
		t.Fatal("the system does not say what memory is available")
	}
	for _, c := range []struct {
		outputs, available int64
		want               bool
	}{
		{available / 3, available, false}, {available, available, true}, {1 << 40, 0, false},
	} {
		if got := crowd(c.outputs, c.available); got != c.want {
			t.Errorf("%d bytes of outputs, %d available: %v, want %v", c.outputs, c.available, got, c.want)
		}
	}
}
