// How search orders what it finds: names first, then guides and lessons, then pages of the reference that mention the words.
var Scorer = {
  score: found => found[4] + (found[0].startsWith('guides/') ? 6 : found[0].startsWith('lessons/') ? 3 : 0),
  objNameMatch: 20,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
}
