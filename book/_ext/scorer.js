// The order of what the search finds: notebooks first, then pages, and the names of the code last.
var Scorer = {
    score: ([page, , , , score]) => score + (page.startsWith("notebooks/") ? 20 : page.startsWith("api/") ? -20 : 0),
    objNameMatch: 8,
    objPartialMatch: 4,
    objPrio: {0: 0, 1: 0, 2: -5},
    objPrioDefault: 0,
    title: 30,
    partialTitle: 10,
    term: 5,
    partialTerm: 2,
};
