"""How a loop receives the operands of a piece: a list of integers of 64 bits, and scratch memory.

The list begins with a header. A record per model follows: the base's, then the experts'.
"""

#: Positions in the header: elements of the piece, number of experts, whether there is a base,
#: whether an expert is stored as its task vector and needs the base added, how a merge is written,
#: and the address of the C library's `pread`.
ELEMENTS, EXPERTS, HAS_BASE, ADDS_BASE, RESULT_KIND, PREAD = 0, 1, 2, 3, 4, 5
#: Positions in a model's record: its address, how it stores numbers, its change, the descriptor of
#: its file, or -1, and the offset of the piece in the file.
ADDRESS, KIND, MODE, DESCRIPTOR, OFFSET = 0, 1, 2, 3, 4
#: The positions of the base's record and of the first expert's, and the length of a record.
BASE, FIRST_EXPERT, PER_MODEL = 6, 11, 5
#: How a model stores numbers.
FP32, BF16, FP16 = 0, 1, 2
#: The change of a model after it is read: none, or the base subtracted, or the base added.
AS_STORED, MINUS_BASE, PLUS_BASE = 0, 1, 2
#: The elements of a strip. Scratch memory has some strips that begin as zeros, and one per expert.
STRIP, OWN_STRIPS = 1024, 9
#: The bytes of a strip.
STRIP_BYTES = 4 * STRIP
#: The sums per inner product.
LANES = 8192
#: The elements that a loop reads from a file at once: those of some models stay in the cache.
CHUNK = 2**16
