package tensor

import "testing"

func TestOwnFreesOnce(t *testing.T) {
	freed := 0
	x, err := Own(make([]byte, 24), Float32, []int64{2, 3}, func() { freed++ })
	if err != nil {
		t.Fatal(err)
	}
	row, err := x.Index(1)
	if err != nil {
		t.Fatal(err)
	}
	x.Release()
	if freed != 0 {
		t.Fatal("freed while a view lives")
	}
	row.Release()
	if freed != 1 {
		t.Fatalf("freed %d times, want once", freed)
	}
}

func TestOwnLeavesTheMemoryWhenItFails(t *testing.T) {
	if _, err := Own(make([]byte, 23), Float32, []int64{2, 3}, func() { t.Fatal("freed") }); err == nil {
		t.Fatal("23 bytes held six float32")
	}
}
