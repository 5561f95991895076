package pybind

import (
	"context"
	"testing"
)

func TestKeptRequests(t *testing.T) {
	var k keptRequests
	for i := range int64(mostKept + 10) {
		k.add(i+1, &attendRequest{Layer: int(i + 1)})
	}
	if len(k.requests) != mostKept {
		t.Fatalf("%d requests are kept, want %d", len(k.requests), mostKept)
	}
	if _, err := k.find(10); err == nil {
		t.Fatal("an old request is still there")
	}
	if in, err := k.find(11); err != nil || in.Layer != 11 {
		t.Fatalf("got %v, %v, want request 11", in, err)
	}
}

func TestAgainRefuses(t *testing.T) {
	for _, text := range []string{"", "1 2 3", "1 2 3 4 5 6 7 8 9 x", "1 2 3 4 5 6 7 8 9 10 11", "99999999999999999999 2 3 4 5 6 7 8 9 10", "77 0 0 0 0 0 0 0 0 0"} {
		if _, _, err := attendAgain(context.Background(), text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A request is kept as it was: a repetition changes a copy.
func TestAgainLeavesTheKeptRequest(t *testing.T) {
	in := &attendRequest{Engine: -1, Query: &array{Address: 1}, Ready: &fence{Address: 2}, Done: &fence{Address: 3, Value: 4}}
	kept.add(1<<40, in)
	if _, _, err := attendAgain(context.Background(), "1099511627776 5 10 11 12 13 14 15 16 17"); err == nil {
		t.Fatal("an engine that is not there")
	}
	if in.Layer != 0 || in.Query.Address != 1 || in.Key != nil || in.Ready.Address != 2 || in.Done.Address != 3 || in.Done.Value != 4 {
		t.Fatalf("the kept request became %+v", in)
	}
}
