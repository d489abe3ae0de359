"""A function on a GPU, recorded once as a CUDA graph and replayed in one launch."""

import torch


class CudaGraph:
    """Call it as the function that it was made from.

    A small model's step is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than
    the GPU to run it. The first calls run as they are, so that everything is compiled and allocated; the next one is
    recorded. The tensors that it returns are overwritten by the next call. Like the function, it needs inputs of the
    same shapes each time, and must not read a value back to Python.
    """

    def __init__(self, function, calls_before: int = 3):
        self.function, self.calls_before, self.graph = function, calls_before, None
        self.side = None  # the stream of all first calls: one, because each keeps the memory that it used

    def __call__(self, *inputs: torch.Tensor):
        if self.calls_before > 0:
            self.calls_before -= 1
            # On a side stream, as recording does: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
            self.side = self.side or torch.cuda.Stream()
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                result = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.side)
            return result
        if self.graph is None:
            self.inputs = [x.clone() for x in inputs]
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph):
                    self.result = self.function(*self.inputs)
            except RuntimeError:
                # The random numbers still count as being recorded, and the next dropout would be an error.
                generator = torch.cuda.default_generators[torch.cuda.current_device()]
                generator.graphsafe_set_state(generator.clone_state())
                raise
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result
